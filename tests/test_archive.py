"Archives of runs: the same bytes each time, and every way in which one can be damaged or forged"

import hashlib
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import stat
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import refuses, succeeds, tree

from shakespeare_neox.engine.archive import (
    MANIFEST,
    neox_archive_main,
    neox_verify_main,
    open_archive,
    pack_run,
    verify,
)
from shakespeare_neox.engine.base import COMMANDS, NeoxError, contents
from shakespeare_neox.engine.checkpoints import best_score, write_zip
from shakespeare_neox.engine.recipe import load_config, parse_override
from shakespeare_neox.engine.run import neox_train_main

pytestmark = pytest.mark.usefixtures("here")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def packed(trained, tmp_path_factory):
    "An archive of the tiny run; copy it before changing it"
    path = tmp_path_factory.mktemp("packed") / "tiny.zip"
    pack_run(trained, path, max_new_tokens=40)
    return path


@pytest.fixture
def opened(packed, tmp_path):
    "The files of the archive, to be changed"
    folder = tmp_path / "opened"
    folder.mkdir()
    open_archive(packed, folder)
    return folder


def packed_again(folder, path="changed.zip"):
    "Packs a folder as it is now, whatever its manifest says"
    write_zip(path, {name: folder / name for name in contents(folder)})
    return path


def forge(folder, change=lambda manifest: None):
    "Makes the manifest of a folder fit its files again, changed in another way; packs it"
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {
        name: dict(bytes=size, sha256=hashlib.sha256((folder / name).read_bytes()).hexdigest())
        for name, size in contents(folder).items()
        if name != MANIFEST
    }
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return packed_again(folder)


def raw_zip(*entries, path="evil.zip"):
    "A .zip of (ZipInfo or name, content) pairs, whatever they are"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # two files of one name
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def nothing_left(folder="."):
    "Asserts that a refusal left no folder and no temporary behind"
    assert not Path("new").exists()
    assert [p.name for p in Path(folder).iterdir() if ".neox-tmp" in p.name] == []


# what is packed


def test_same_bytes(trained, packed, tmp_path):
    copy = tmp_path / "copy" / "tiny"
    shutil.copytree(trained, copy)
    for file in copy.rglob("*"):
        os.utime(file, (1e9, 1e9))
        if file.is_file():
            file.chmod(0o600)
    os.umask(os.umask(0o077))
    pack_run(copy, "again.zip", max_new_tokens=40)
    assert Path("again.zip").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile("again.zip") as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.create_system for entry in entries} == {3}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}


def test_what_is_in_it(trained, packed, opened):
    names = set(contents(opened))
    assert {
        "config.yml",
        "data/train.bin",
        "data/valid.bin",
        "data/tokenizer.json",
        "checkpoints/best/model.safetensors",
        "checkpoints/last/model.safetensors",
        "samples/best.txt",
        "samples/last.txt",
        "samples/step_15.txt",
        "samples/step_30.txt",
        MANIFEST,
    } <= names
    manifest = json.loads((opened / MANIFEST).read_text())
    assert set(manifest["files"]) == names - {MANIFEST}
    best = (trained / "best" / "model.safetensors").read_bytes()
    assert (opened / "checkpoints/best/model.safetensors").read_bytes() == best
    assert manifest["models"]["best"]["loss"] == pytest.approx(best_score(trained)[0], abs=1e-3)
    assert len((opened / "samples/best.txt").read_text()) == 40


def test_places_of_a_run_stay_out(trained):
    shutil.copytree(trained, "run")
    shutil.copytree(trained / "best", "letters")
    settings = yaml.safe_load(Path("run/config.yml").read_text())
    places = dict(vocab_file=str(Path("letters").resolve()))
    Path("run/config.yml").write_text(yaml.safe_dump(settings | places))
    pack_run("run", "run.zip", max_new_tokens=5)
    open_archive("run.zip", _empty("opened"))
    kept = yaml.safe_load(Path("opened/config.yml").read_text())
    assert kept["data_path"] == "data" and not {"vocab_file", "save", "load"} & set(kept)
    assert kept["num_layers"] == settings["num_layers"]


def test_no_path_of_the_machine(trained, opened):
    places = [str(trained.parent), str(Path.home()) + os.sep, str(Path.cwd())]
    for name in contents(opened):
        content = (opened / name).read_bytes()
        assert not any(place.encode() in content for place in places), name


def test_verify(packed, capsys):
    out, err = succeeds(neox_verify_main, [packed], capsys)
    assert re.search(r"^\d+ files are as manifest.json says$", out, re.M)
    assert re.search(
        r"^best: \d\.\d{4} nats .* as recorded; the same text of 40 tokens$", out, re.M
    )
    assert err == "" and os.listdir() == []


def test_commands(trained, capsys):
    out, err = succeeds(
        neox_archive_main, [trained, "--max-new-tokens", "5", "--prompt", "MARIAN:"], capsys
    )
    assert out == "tiny.zip\n" and "SHA-256" in err and "best: " in err
    out, err = succeeds(neox_verify_main, ["tiny.zip", "--out", "new"], capsys)
    assert "the same text of 5 tokens" in out and "unpacked to new" in err
    assert len(Path("new/samples/best.txt").read_text()) == 5
    assert json.loads(Path("new", MANIFEST).read_text())["models"]["best"]["prompt"] == "MARIAN:"


def test_an_unpacked_archive_is_trained_again(packed, trained, capsys, monkeypatch):
    verify(packed, _empty("again"))
    monkeypatch.chdir("again")
    neox_train_main(["config.yml", "--checkpoint_dir", "runs/tiny"])
    assert best_score(Path("runs/tiny")) == best_score(trained)


def _empty(name):
    Path(name).mkdir()
    return Path(name)


# what does not match


def test_each_file_is_named(packed, opened):
    manifest = json.loads((opened / MANIFEST).read_text())
    assert len(manifest["files"]) > 15
    for number, name in enumerate(manifest["files"]):
        original = (opened / name).read_bytes()
        for damaged in (original[:-1] + bytes([original[-1] ^ 1]), original[:-1], b""):
            (opened / name).write_bytes(damaged)
            path = packed_again(opened, f"{number}-{len(damaged)}.zip")
            with pytest.raises(
                NeoxError, match=re.escape(f"{path}, {name}: does not match")
            ) as error:
                open_archive(path, _empty(f"f{number}-{len(damaged)}"))
            assert "\n" not in str(error.value)
        (opened / name).write_bytes(original)


def test_missing_and_added(opened, capsys):
    (opened / "extra.txt").write_text("x")
    refuses(neox_verify_main, [packed_again(opened, "a.zip")], capsys, "extra.txt", "is not in")
    (opened / "extra.txt").unlink()
    (opened / "samples/step_15.txt").unlink()
    refuses(neox_verify_main, [packed_again(opened, "b.zip")], capsys, "step_15.txt", "missing")
    (opened / MANIFEST).unlink()
    refuses(neox_verify_main, [packed_again(opened, "c.zip")], capsys, "c.zip, manifest.json")
    nothing_left()


@pytest.mark.parametrize("gone", ["data/valid.bin", "samples/best.txt"])
def test_what_is_needed_is_missing(gone, opened, capsys):
    (opened / gone).unlink()
    refuses(neox_verify_main, [forge(opened)], capsys, gone, "missing")


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda m: m["models"]["best"].update(loss=m["models"]["best"]["loss"] + 0.001), "loss is"),
        (lambda m: m["models"]["last"].update(bits_per_byte=1.0), "bits_per_byte is"),
        (lambda m: m["models"]["best"].update(prompt="MARIAN"), "writes another text"),
        (lambda m: m["models"]["best"].update(max_new_tokens=39), "writes another text"),
        (lambda m: m["models"]["best"].update(max_new_tokens=10**9), "max_new_tokens"),
        (lambda m: m["models"]["best"].update(prompt="\u2603"), "changed.zip"),
        (lambda m: m["models"]["best"].update(prompt="a" * 1000), "changed.zip"),
        (lambda m: m["models"]["best"].update(loss=float("nan")), "loss"),
        (lambda m: m["models"]["best"].update(loss="low"), "loss"),
        (lambda m: m["models"].update({"../best": m["models"]["best"]}), "missing"),
        (lambda m: m["models"].clear(), "models"),
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.pop("files"), "files"),
        (lambda m: m["files"].update({"../x": dict(bytes=1, sha256="0" * 64)}), "missing"),
        (lambda m: m["files"]["config.yml"].update(sha256="0"), "sha256"),
    ],
)
def test_forged_manifest(change, part, opened, capsys):
    refuses(neox_verify_main, [forge(opened, change), "--out", "new"], capsys, "changed.zip", part)
    nothing_left()


def test_forged_files(opened, capsys):
    text = (opened / "samples/best.txt").read_text()
    (opened / "samples/best.txt").write_text(text[:20] + "!" + text[21:])
    line = refuses(neox_verify_main, [forge(opened)], capsys, "writes another text")
    assert "at character 20" in line and "torch" in line
    (opened / "samples/best.txt").write_text(text)
    Path("changed.zip").unlink()
    valid = opened / "data/valid.bin"
    valid.write_bytes(valid.read_bytes()[::-1])
    refuses(neox_verify_main, [forge(opened)], capsys, "changed.zip")


@pytest.mark.parametrize(
    "name, content",
    [
        ("checkpoints/best/config.json", b"{}"),
        ("checkpoints/best/model.safetensors", b"x" * 100),
        ("checkpoints/best/tokenizer.json", b"[]"),
        ("data/valid.json", b'{"n_tokens": 1}'),
        ("data/valid.bin", b""),
    ],
)
def test_well_packed_nonsense(name, content, opened, capsys):
    (opened / name).write_bytes(content)
    line = refuses(neox_verify_main, [forge(opened), "--out", "new"], capsys, "changed.zip", name)
    assert str(opened) not in line and "neox-tmp" not in line
    nothing_left()


# what is no archive, or a hostile one


def test_cut_off(packed, capsys):
    whole = packed.read_bytes()
    for tenth in range(10):
        Path("cut.zip").write_bytes(whole[: len(whole) * tenth // 10])
        refuses(neox_verify_main, ["cut.zip", "--out", "new"], capsys, "cut.zip", "cut off")
    Path("cut.zip").write_bytes(whole[:-1])
    refuses(neox_verify_main, ["cut.zip", "--out", "new"], capsys, "cut.zip", "cut off")
    nothing_left()


def test_another_kind_of_file(packed, capsys):
    Path("page.zip").write_text("<html>")
    with tarfile.open("archive.tar.gz", "w:gz") as archive:
        archive.add("page.zip")
    shutil.copy("archive.tar.gz", "renamed.zip")
    Path("folder.zip").mkdir()
    for name in ("page.zip", "archive.tar.gz", "renamed.zip"):
        refuses(neox_verify_main, [name], capsys, name, "not a .zip")
    for name in ("folder.zip", "absent.zip", "/dev/zero", ""):
        refuses(neox_verify_main, [name], capsys, "no such file")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/tmp/evil",
        "a/../../evil",
        "..\\evil",
        "C:evil",
        "C:/evil",
        "a//b",
        "./a",
        "a/b/c/d",
        ".hidden",
        "a/",
        "a\x00b",
        "é.txt/../x",
        "",
    ],
)
def test_names_that_lead_elsewhere(name, capsys, tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b" / "c"  # each name that climbs still ends in tmp_path
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    before = tree(tmp_path)
    path = raw_zip((zipfile.ZipInfo("manifest.json"), "{}"), (zipfile.ZipInfo("xxxx"), "evil"))
    content = Path(path).read_bytes()
    if len(name) <= 4:  # names that Python would clean are set raw
        raw = name.encode()
        content = content.replace(b"xxxx", raw.ljust(4, b"/"))
        Path(path).write_bytes(content)
    else:
        raw_zip((zipfile.ZipInfo("manifest.json"), "{}"), (zipfile.ZipInfo(name), "evil"))
    refuses(neox_verify_main, ["evil.zip", "--out", "new"], capsys, "evil.zip", "not unpacked")
    Path("evil.zip").unlink()
    nothing_left()
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_links_and_devices(kind, capsys):
    entry = zipfile.ZipInfo("data")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    raw_zip((entry, "/etc/passwd"), ("manifest.json", "{}"))
    refuses(neox_verify_main, ["evil.zip", "--out", "new"], capsys, "'data'", "link or a device")
    nothing_left()


@pytest.mark.parametrize("names", [["a", "a"], ["a", "A"], ["a", "a/b"], ["a/b/c", "a/B"]], ids=str)
def test_several_files_of_one_name(names, capsys):
    raw_zip(*((zipfile.ZipInfo(name), "x") for name in names))
    refuses(neox_verify_main, ["evil.zip", "--out", "new"], capsys, "files of one name")
    nothing_left()


def test_bombs(capsys):
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", bytes(10**8))
    refuses(neox_verify_main, ["bomb.zip", "--out", "new"], capsys, "100,000,000 bytes")
    content = bytearray(Path("bomb.zip").read_bytes())  # one that declares a small size
    for at in (m.start() for m in re.finditer(re.escape((10**8).to_bytes(4, "little")), content)):
        content[at : at + 4] = (10).to_bytes(4, "little")
    Path("liar.zip").write_bytes(content)
    refuses(neox_verify_main, ["liar.zip", "--out", "new"], capsys, "liar.zip", "damaged")
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile("odd.zip", "w", kind) as archive:
            archive.writestr("data", bytes(100))
        refuses(neox_verify_main, ["odd.zip", "--out", "new"], capsys, "an unusual way")
    nothing_left()


def test_encrypted(capsys):
    raw_zip(("data", "x"))
    content = bytearray(Path("evil.zip").read_bytes())
    content[6] |= 1  # its own header, and the one in the list
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("evil.zip").write_bytes(content)
    refuses(neox_verify_main, ["evil.zip", "--out", "new"], capsys, "encrypted")


def test_any_damage_is_found(opened):
    "Bytes changed at random: refused, or what is unpacked is what was packed"
    for name in contents(opened):  # small, so that headers are hit too
        if name != MANIFEST and "samples/" not in name:
            (opened / name).write_bytes(b"x")
    whole, draws = Path(forge(opened)).read_bytes(), random.Random(0)
    right = {name: (opened / name).read_bytes() for name in contents(opened)}
    found = 0
    for number in range(400):
        damaged = bytearray(whole)
        for _ in range(draws.choice([1, 1, 3, 20])):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        if draws.random() < 0.2:
            at = draws.randrange(len(damaged))
            del damaged[at : at + draws.randint(1, 50)]
        Path("damaged.zip").write_bytes(damaged)
        folder = _empty(f"try{number}")
        try:
            open_archive("damaged.zip", folder)
        except NeoxError as error:
            found += 1
            assert str(error).startswith("damaged.zip") and "\n" not in str(error), error
        else:
            assert {n: (folder / n).read_bytes() for n in contents(folder)} == right
        shutil.rmtree(folder)
    assert found > 100
    assert sorted(os.listdir()) == ["changed.zip", "damaged.zip", "opened"]


# what cannot be packed


def test_no_run(trained, capsys):
    Path("empty").mkdir()
    Path("file").write_text("x")
    shutil.copytree(trained, "unscored", ignore=shutil.ignore_patterns("best", "last"))
    shutil.copytree(trained, "unsettled", ignore=shutil.ignore_patterns("config.yml"))
    shutil.copytree(trained, "unlogged", ignore=shutil.ignore_patterns("log.jsonl"))
    for name in ("absent", "empty", "file", "unscored", "unsettled", "unlogged"):
        refuses(neox_archive_main, [name], capsys, f"{name}: no")
        assert not Path(f"{name}.zip").exists()


def test_bad_flags(trained, capsys):
    Path("mine.zip").write_text("mine")
    for words, part in (
        (["--out", "mine.zip"], "mine.zip: is already there"),
        (["--out", "mine.tar.gz"], "is a .zip"),
        (["--max_new_tokens", "0"], "max_new_tokens=0"),
        (["--max_new_tokens", "1000000"], "max_new_tokens=1000000"),
        (["--prompt", "\u2603"], "\u2603"),
        (["--prompt", "a" * 1000], "1,000 tokens"),
    ):
        refuses(neox_archive_main, [trained, *words], capsys, part)
    assert Path("mine.zip").read_text() == "mine" and os.listdir() == ["mine.zip"]


def test_out_is_not_replaced(packed, capsys):
    Path("mine").mkdir()
    Path("mine/file").write_text("mine")
    before = tree("mine")
    refuses(neox_verify_main, [packed, "--out", "mine"], capsys, "mine: holds other files")
    assert tree("mine") == before


def test_text_is_gone(trained, capsys):
    shutil.copytree(trained, "run")
    settings = yaml.safe_load(Path("run/config.yml").read_text())
    Path("run/config.yml").write_text(yaml.safe_dump(settings | dict(data_path="gone.txt")))
    refuses(neox_archive_main, ["run"], capsys, "gone.txt")
    Path("gone.txt").write_text("Another text, with letters of its own. \u2603" * 100)
    refuses(neox_archive_main, ["run"], capsys)
    assert not Path("run.zip").exists()


def test_model_is_damaged(trained, capsys):
    shutil.copytree(trained, "run")
    os.truncate("run/best/model.safetensors", 1000)
    line = refuses(neox_archive_main, ["run"], capsys, "best")
    assert "/tmp" not in line and not Path("run.zip").exists()


# the release


def test_release_packs_a_book():
    "The release trains on a book, packs the run, checks the archive and attaches it"
    path = ROOT / ".github/workflows/release.yml"
    if not path.exists():
        pytest.skip("the workflows are not beside the tests")
    workflow = yaml.safe_load(path.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", [])]
    lines = [
        shlex.split(line)
        for step in steps
        for line in step.get("run", "").replace("\\\n", " ").splitlines()
        if line.strip().startswith("neox_")
    ]
    names = [line[0] for line in lines]
    assert names == ["neox_train", "neox_archive", "neox_verify"] and set(names) <= set(COMMANDS)
    train, archive, check = lines
    words = [word for word in train[1:] if not word.startswith("--")]
    at = train.index("--checkpoint_dir")
    assert train[at + 1] == archive[1] and words.remove(train[at + 1]) is None
    out = archive[archive.index("--out") + 1]
    assert check[1] == out
    assert all("=" in word for word in words[1:])
    settings = {}
    for word in words[1:]:
        settings |= parse_override(word)
    assert load_config(words[0], **settings).train.data_path.startswith("gutenberg:")
    attached = [
        step["with"]["path"] for step in steps if step.get("with", {}).get("name") == "model"
    ]
    assert any(Path(out).match(pattern) for pattern in attached)


def test_release_makes_a_larger_model():
    "The model beside a release: a card without a path, a .zip of its sum, found by its name"
    path = ROOT / ".ci/checkpoint.py"
    if not path.exists():
        pytest.skip("the scripts of the release are not beside the tests")
    spec = importlib.util.spec_from_file_location("checkpoint", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    tiny = dict(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=32)
    steps = dict(train_iters=2, eval_interval=2, data_path="sample")
    (name,) = [name for name in script.RECIPES if name not in (script.SHIPPED, script.STORIES)]
    script.RECIPES[name] = (("quickstart",), tiny | steps | dict(compile="off"))
    Path("data/models").mkdir(parents=True)
    script.release("v1.2.3", Path())
    (entry,) = json.loads(Path("data/models/manifest.json").read_text()).values()
    made = Path("dist-model", f"{name}.zip")
    assert entry["url"].endswith(f"/v1.2.3/{name}.zip")
    assert entry["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    card = Path("dist-model", name, "README.md").read_text()
    assert f"# {name}\n" in card and f"`neox_generate {name}`" in card
    assert "https://github.com/shakespeare-neox/shakespeare_neox" in card
    assert str(Path.cwd()) not in card and "loss.png" not in card
    with zipfile.ZipFile(made) as archive:
        assert "model.safetensors" in archive.namelist()
