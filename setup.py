"Packaging: every value is read from settings.ini; recipes, samples and tokenizers travel in the wheel."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

ASSETS = {"configs": ["*.yml", "*.json", "own/*.yml", "accelerate/*.yaml"], "data": ["*.txt", "*.json", "models/*.json", "models/*/*"],
          "tokenizer": ["*.json", "*/*.json"]}  # folder of the clone -> what ships

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
extras = {k.removesuffix("_requirements"): cfg[k].split() for k in cfg if k.endswith("_requirements")}
extras["all"] = sorted({r for name, rs in extras.items() if name not in ("dev", "docs") for r in rs})


def readme():
    "The README with whole addresses, for a page outside the repository"
    text, at = Path("README.md").read_text(encoding="utf-8"), f"{cfg['git_url']}/%s/{cfg['branch']}/"
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", lambda m: m[1] + at % "raw", text)
    text = text.replace("](#", "](README.md#")              # a section of this page
    return re.sub(r"((?<!!)\[[^\[\]]*\]\()(?!https?:)", lambda m: m[1] + at % "blob", text)


class BuildWithAssets(build_py):
    "Copies the files that ship into `shakespeare_neox/assets`; an editable install finds them in the clone."
    def run(self):
        super().run()
        if self.editable_mode: return
        for file in (f for folder, patterns in ASSETS.items() for p in patterns for f in Path(folder).glob(p)):
            target = Path(self.build_lib)/cfg["lib_name"]/"assets"/file
            target.parent.mkdir(parents=True, exist_ok=True); self.copy_file(str(file), str(target))


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license_expression="Apache-2.0",
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"], "Issues": cfg["git_url"] + "/issues",
                  "Changelog": f"{cfg['git_url']}/blob/{cfg['branch']}/CHANGELOG.md"},
    long_description=readme(), long_description_content_type="text/markdown",
    classifiers=["Development Status :: 3 - Alpha", "Natural Language :: " + cfg["language"],
                 *(f"Intended Audience :: {a}" for a in cfg["audience"].split()),
                 *(f"Programming Language :: Python :: 3.{v}" for v in (11, 12, 13)),
                 "Programming Language :: Python :: 3 :: Only", "Operating System :: OS Independent", "Typing :: Typed",
                 "Topic :: Education", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    packages=[cfg["lib_path"], cfg["lib_path"] + ".engine"], package_data={cfg["lib_path"]: ["py.typed"]}, python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require=extras, entry_points={"console_scripts": cfg["console_scripts"].split(),
                                         "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    cmdclass={"build_py": BuildWithAssets}, zip_safe=False)
