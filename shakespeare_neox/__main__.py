"python -m shakespeare_neox: lists the commands, or runs one"
if __name__ == "__main__":
    from shakespeare_neox.engine.base import run_module

    run_module()
