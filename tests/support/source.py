"""Read the program's source as the bounds of the design count it."""

import ast
import io
import re
import textwrap
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PACKAGE = "etl"

Graph = Mapping[str, set[str]]
"""The modules that each module imports."""

# --- imports ---


@cache
def import_graph() -> grimp.ImportGraph:
    """Return who imports whom within the package; imports for type checking count, too."""
    return grimp.build_graph(PACKAGE, cache_dir=None)


def module_arrows() -> Graph:
    """Return the imports between modules."""
    graph = import_graph()
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def room_arrows(modules: Graph) -> Graph:
    """Return the imports between rooms: the direct children of the package."""
    rooms: dict[str, set[str]] = {room: set() for room in map(_room, modules) if room}
    for importer, imported in modules.items():
        for room in map(_room, imported):
            if room and _room(importer) not in {room, ""}:
                rooms[_room(importer)].add(room)
    return rooms


def _room(module: str) -> str:
    """Return the direct child of the package that has `module`, "" for the package itself."""
    return ".".join(module.split(".")[1:2])


def circle(arrows: Graph) -> list[str]:
    """Return modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        members: list[str] = error.args[1]
        return members
    return []


def floors(arrows: Graph) -> int:
    """Return the length of the longest chain of imports; needs arrows without a circle."""
    heights: dict[str, int] = {}
    for module in TopologicalSorter(arrows).static_order():
        heights[module] = 1 + max((heights[each] for each in arrows[module]), default=0)
    return max(heights.values())


# --- files and names ---


def modules_in(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def repeated_module_names(package: Path) -> dict[str, list[str]]:
    """Return names that several modules or packages have, leading underscores left out."""
    places = defaultdict(list)
    for path in modules_in(package):
        is_package = path.name == "__init__.py"
        name = path.parent.name if is_package else path.stem
        if path.stem != "__main__":
            places[name.lstrip("_")].append(str(path.relative_to(package)))
    return _repeated(places)


def repeated_class_names(package: Path) -> dict[str, list[str]]:
    """Return names that several classes have, leading underscores left out."""
    places = defaultdict(list)
    for path in modules_in(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                place = f"{path.relative_to(package)}:{node.lineno}"
                places[node.name.lstrip("_")].append(place)
    return _repeated(places)


def _repeated(places: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: found for name, found in sorted(places.items()) if len(found) > 1}


# --- references to our own names ---


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return the full name of what each name stands for that `tree` imports."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.AST, names: Mapping[str, str]) -> str:
    """Return the full name of an imported object or of a part of it, "" for any other node."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        owner = full_name(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def references(text: str, *objects: str) -> list[int]:
    """Return the lines that call one of `objects`, given by full names, or pass it on."""
    tree = ast.parse(text)
    names = imported_names(tree)
    return sorted(
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and full_name(node, names) in objects
    )


# --- patches ---

PATCHING_CALLS = re.compile(
    r"(^|\.)(setattr|delattr|setitem|delitem|patch|patch\.(object|dict|multiple))$"
)
TARGET_WORDS = {"target", "dic", "in_dict"}


def patches(text: str) -> list[tuple[int, str]]:
    """Return line and target of each patch of an object of ours in the text of a test module.

    Programs in the module's strings, which tests run as processes, are searched as well. The lines
    in them count from the string's beginning.
    """
    tree = ast.parse(text)
    names = imported_names(tree)
    found = [
        (target.lineno, name)
        for target in _patched(tree)
        if (name := _patched_name(target, names)).startswith(f"{PACKAGE}.")
    ]
    return sorted([*found, *(patch for program in _programs(tree) for patch in patches(program))])


def _patched(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what calls and assignments change: `setattr(x, ...)`, `patch("x")`, `x.y = ...`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and PATCHING_CALLS.search(ast.unparse(node.func)):
            targets = [word.value for word in node.keywords if word.arg in TARGET_WORDS]
            yield from [*node.args[:1], *targets]
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield node


def _patched_name(target: ast.expr, names: Mapping[str, str]) -> str:
    if isinstance(target, ast.Constant):
        return str(target.value)
    if isinstance(target, ast.Subscript):
        return full_name(target.value, names)
    return full_name(target, names)


def _programs(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            program = textwrap.dedent(node.value)
            if re.search(rf"^(import|from) {PACKAGE}\b", program, re.MULTILINE):
                yield from filter(_parses, [program])


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


# --- language ---

IDIOMS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"\b[Ww]hat\s+(is|was|has|had|they|it|a|we|the)\b",
        r"\b[Ss]o\s+(many|long|much|often)\b",
        r"^(Have|Let)\s",
        r"\banew\b",
        r"\bat\s+the\s+(most|least)\b",
        r"\b([Ww]hoever|Who)\s+\w+",
        r"\bis\s+(no|none)\b",
    )
)


def idioms(texts: Iterable[str]) -> Counter[str]:
    """Count the phrases that international readers have to decipher, by pattern."""
    return Counter(
        {
            idiom.pattern: sum(len(idiom.findall(text)) for text in texts)
            for texts in [list(texts)]
            for idiom in IDIOMS
        }
    )


def texts_for_people(package: Path) -> Iterator[tuple[Path, str]]:
    """Yield the docstrings, comments and help texts of a package, and of its SQL the comments."""
    for path in modules_in(package):
        text = path.read_text(encoding="utf-8")
        yield from ((path, each) for each in [*_strings_for_people(text), *_comments(text)])
    for path in sorted(package.rglob("*.sql")):
        comments = re.findall(r"--[ ]?(.*)", path.read_text(encoding="utf-8"))
        yield path, "\n".join(comments)


def _strings_for_people(text: str) -> Iterator[str]:
    """Yield docstrings, attributes' too, and `help=`, `short_help=` and `epilog=` texts."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case (
                ast.Expr(value=value)
                | ast.keyword(arg="help" | "short_help" | "epilog", value=value)
            ):
                yield from _strings(value)


def _strings(value: ast.expr) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(text)):
            yield textwrap.dedent(text)
        case ast.JoinedStr(values=parts):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts
            )


def _comments(text: str) -> Iterator[str]:
    """Yield each comment; lines that continue a comment belong to it."""
    block: list[str] = []
    last = (-1, -1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start != (last[0] + 1, last[1]):
            yield "\n".join(block)
            block = []
        block.append(token.string.lstrip("#! "))
        last = token.start
    yield "\n".join(block)
