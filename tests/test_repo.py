"""The repository keeps its own promises: pages name real files, verbs exist, imports stay light and one-way."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "openhunyuan"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
MODULES = sorted(SOURCE.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_readme_is_short_and_opens_with_a_picture() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    picture = re.match(r"!\[.+\]\((.+)\)", lines[0])
    assert picture, "the first line must be the strip of frames"
    assert (ROOT / picture[1]).read_bytes().startswith(b"\x89PNG")
    assert any(line.startswith("make demo") for line in lines[:15]), "the two commands come before anything else"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_the_map_names_real_files() -> None:
    rows = [line for line in (ROOT / "docs/map.md").read_text().splitlines() if line.startswith("| ")]
    paths = [path for row in rows for path in re.findall(r"`([^`]+)`", row.split("|")[2])]
    assert len(paths) > 40
    missing = [path for path in paths if not (SOURCE / path).exists() and not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_real_functions(page: Path) -> None:
    """Every import in a code block of a page works against the source, without running it."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openhunyuan"):
                path = SOURCE.parent.joinpath(*node.module.split(".")).with_suffix(".py")
                assert path.is_file(), node.module
                defined = {
                    n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)
                }
                assert {alias.name for alias in node.names} <= defined, node.module


def test_make_has_the_verbs_and_ci_runs_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for verb in ("demo", "test", "lint", "bench", "reproduce-embedded"):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE), verb
    ci = ROOT / ".ci" / "run"
    assert ci.stat().st_mode & 0o111
    assert "exec make test" in ci.read_text()
    assert "run: .ci/run" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_every_dependency_is_pinned_at_or_above_its_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["train"], *extras["curate"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    pins = {canonical(key): version for key, version in pins.items()}
    for requirement in wanted:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?>=([0-9.]+)", requirement)
        assert match, requirement
        assert numbers(pins[canonical(match[1])]) >= numbers(match[2]), requirement


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def test_packages_have_no_code_in_init_files() -> None:
    for path in SOURCE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body), name(path)
    for folder in {path.parent for path in MODULES}:
        assert (folder / "__init__.py").is_file(), name(folder)


def imports_at_import_time(tree: ast.Module) -> set[str]:
    """Top-level package names that importing the module imports (not those inside functions or TYPE_CHECKING)."""
    found: set[str] = set()
    queue: list[ast.stmt] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ClassDef | ast.Try | ast.With):
            queue += node.body
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            queue += node.body + node.orelse
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_optional_packages_are_not_needed_to_import(path: Path) -> None:
    optional = {"diffusers", "cv2", "scenedetect", "skimage", "tensorboard", "matplotlib", "pyarrow", "pytest"}
    assert imports_at_import_time(ast.parse(path.read_text())) & optional == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_say_what_they_are(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{name(path)} has no docstring"


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys; from openhunyuan.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment())
    assert result.returncode == 0, result.stderr
    assert "generate" in result.stdout


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "src")}


def test_every_verb_has_help() -> None:
    from openhunyuan.cli.main import VERBS

    for verb in VERBS:
        result = subprocess.run(
            [sys.executable, "-m", "openhunyuan", verb, "--help"], capture_output=True, text=True, env=environment()
        )
        assert result.returncode == 0, result.stderr
        assert verb in result.stdout + result.stderr


def test_embedded_weights_are_at_most_20_megabytes_and_safetensors() -> None:
    weights = [p for p in (SOURCE / "tiny" / "weights").rglob("*") if p.is_file()]
    assert weights, "the embedded model is missing"
    assert sum(p.stat().st_size for p in weights) <= 20_000_000
    assert not [p for p in weights if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
