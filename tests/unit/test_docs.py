"""The documentation is current, and its links lead somewhere."""

import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "docs" / "generate_configuration.py"
_NOT_OURS = {".git", ".venv", "node_modules", "build", "dist", "demo-output"}
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_HTML = re.compile(r"<(?:img|a)\b[^>]*?(?:src|href)=[\"']([^\"']+)[\"']")


def pages() -> list[Path]:
    found = [
        path
        for path in ROOT.rglob("*.md")
        if not any(part in _NOT_OURS or part.endswith("_cache") for part in path.relative_to(ROOT).parts)
    ]
    return sorted(found)


def targets(text: str) -> list[str]:
    prose = _CODE.sub("", _FENCE.sub("", text))
    return _LINK.findall(prose) + _HTML.findall(prose)


def anchors(text: str) -> set[str]:
    """Names that a heading can be linked by, as GitHub and GitLab make them."""
    found = set()
    for heading in re.findall(r"^#+\s+(.+?)\s*$", _FENCE.sub("", text), re.MULTILINE):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


def test_configuration_page_is_current() -> None:
    rendered = runpy.run_path(str(GENERATOR))["render"]()
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == rendered, "docs/configuration.md is old: run docs/generate_configuration.py"


def test_configuration_page_names_every_key() -> None:
    from tango_stddaq.config import DaqConfig

    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [key for key in DaqConfig.model_fields if f"| `{key}` |" not in page]
    assert not missing


def test_links_are_recognised() -> None:
    text = (
        "[a](x.md) ![b](y.png 'title') <img src=\"z.svg\" width=3> `[c](no.md)`\n"
        "```\n[d](no.md)\n```\n[e](w.md#part)\n"
    )
    assert targets(text) == ["x.md", "y.png", "w.md#part", "z.svg"]


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in targets(page.read_text()):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue  # another site, a mail address
        name, _, anchor = unquote(target).partition("#")
        path = (page.parent / name).resolve() if name else page
        exists = path.is_relative_to(ROOT) and path.exists()
        if exists and anchor and path.suffix == ".md":
            exists = anchor in anchors(path.read_text())
        if not exists:
            broken.append(target)
    assert not broken, f"{page.relative_to(ROOT)}: {broken} point nowhere"


def test_pictures_are_used() -> None:
    linked = {
        (page.parent / unquote(target)).resolve()
        for page in pages()
        for target in targets(page.read_text())
        if not re.match(r"[a-z]+:|#", target)
    }
    pictures = {path for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".png", ".svg")}
    assert pictures <= linked, f"no page shows {sorted(p.name for p in pictures - linked)}"
