"The file that Streamlit runs: the page of `shakespeare_neox.app`"
from shakespeare_neox.app import page

__all__ = []

if __name__ == "__main__":
    page()
