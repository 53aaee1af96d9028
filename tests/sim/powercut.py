"""What a disk may hold after a power cut: recorded operations, and every state they leave possible.

Two file systems. The strict one promises what POSIX does: data, and each entry of a folder, are there for
sure once an fsync of that file or folder has returned, and until then any part of them may be. The friendly
one keeps its journal in order, commits all of it with any fsync, and puts a file's data before its new name.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from random import Random
from typing import TypeAlias

Tree: TypeAlias = dict[str, bytes]  # path below the disk's root -> content; a folder's path ends with /
ROOT = 0
SUBSETS_MAX = 4  # up to so many entries all their subsets are tried, beyond it the telling ones
ROW_MAX, CUT_STEP = 200, 8  # a write of a row's size, when just done, is torn at every eighth byte
EDITS_MAX = 8  # so many of a file's last edits are tried one by one, those before it together


@dataclass(frozen=True)
class Entries:
    """Names of one folder given, taken or moved, all at once: create, mkdir, rename, unlink."""

    path: str
    folder: int
    changes: tuple[tuple[str, int | None], ...]

    @property
    def renamed(self) -> int | None:
        return self.changes[1][1] if len(self.changes) == 2 else None


@dataclass(frozen=True)
class Write:
    path: str
    inode: int
    offset: int
    data: bytes

    def on(self, content: bytes) -> bytes:
        head = content[: self.offset].ljust(self.offset, b"\0")
        return head + self.data + content[self.offset + len(self.data) :]


@dataclass(frozen=True)
class Resize:
    path: str
    inode: int
    size: int

    def on(self, content: bytes) -> bytes:
        return content[: self.size].ljust(self.size, b"\0")


@dataclass(frozen=True)
class Sync:
    """An fsync that has returned: it covers the operations before *began*."""

    path: str
    inode: int
    began: int


@dataclass(frozen=True)
class Send:
    """Bytes that left the machine: whatever they promise is promised from here on."""

    data: bytes
    path: str = ""


NOTHING = Send(b"")
Edit: TypeAlias = Write | Resize
Op: TypeAlias = Entries | Edit | Sync | Send


@dataclass
class Recording:
    """What was done to a disk, in order; the cuts are tried from operation *first* on."""

    ops: list[Op] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {ROOT})
    first: int = 0


class Disk:
    """What is on the disk for sure, and what is on its way; to be told every operation in order."""

    def __init__(self, recording: Recording, friendly: bool = False) -> None:
        self._friendly = friendly
        self._folders = recording.folders
        self._last: Op = NOTHING
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._entries: list[tuple[int, Entries]] = []
        self._edits: dict[int, list[tuple[int, Edit]]] = {}

    def take(self, index: int, op: Op) -> None:
        """Let an operation happen."""
        self._last = op
        match op:
            case Entries():
                self._entries.append((index, op))
            case Write() | Resize():
                self._edits.setdefault(op.inode, []).append((index, op))
            case Sync():
                self._settle(op)

    def _settle(self, sync: Sync) -> None:
        self._settle_edits(sync.inode, sync.began)
        waiting, self._entries = self._entries, []
        for index, entries in waiting:
            if index >= sync.began or not (self._friendly or entries.folder == sync.inode):
                self._entries.append((index, entries))
                continue
            self._names[entries.folder] = _renamed(self._names.get(entries.folder, {}), entries)
            if self._friendly and entries.renamed is not None:
                self._settle_edits(entries.renamed, index)

    def _settle_edits(self, inode: int, before: int) -> None:
        edits = self._edits.get(inode, [])
        sure = [edit for index, edit in edits if index < before]
        self._contents[inode] = _edited(self._contents.get(inode, b""), sure)
        self._edits[inode] = [(index, edit) for index, edit in edits if index >= before]

    def now(self) -> Tree:
        """What the running system sees: everything done so far."""
        entries = [entries for _, entries in self._entries]
        return self._tree(entries, self._full())

    def states(self, rng: Random) -> Iterator[Tree]:
        """What may be found if the power fails now; some states come more than once."""
        return self._friendly_states(rng) if self._friendly else self._strict_states(rng)

    def _strict_states(self, rng: Random) -> Iterator[Tree]:
        selections = list(_selections([entries for _, entries in self._entries]))
        none, full = self._contents, self._full()
        mixtures = [none, full]
        zeros = {inode: content.ljust(len(full[inode]), b"\0") for inode, content in none.items()}
        mixtures.append(full | zeros)
        for inode, edits in self._waiting():
            for variant in _variants(none.get(inode, b""), edits, self._last, rng):
                mixtures += [none | {inode: variant}, full | {inode: variant}]
        for entries in selections:
            for contents in mixtures:
                yield self._tree(entries, contents)

    def _friendly_states(self, rng: Random) -> Iterator[Tree]:
        full = self._full()
        for count in range(len(self._entries) + 1):
            kept = self._entries[:count]
            needed = {entries.renamed: index for index, entries in kept if entries.renamed is not None}
            written = {inode: self._prefix(inode, needed.get(inode, -1)) for inode in full}
            mixtures = [written, full]
            for inode, edits in self._waiting():
                least = sum(index < needed.get(inode, -1) for index, _ in self._edits[inode])
                for variant in _beginnings(self._contents.get(inode, b""), edits, least, NOTHING, rng):
                    mixtures += [written | {inode: variant}, full | {inode: variant}]
            for contents in mixtures:
                yield self._tree([entries for _, entries in kept], contents)

    def _waiting(self) -> list[tuple[int, list[Edit]]]:
        return [(inode, [edit for _, edit in edits]) for inode, edits in self._edits.items() if edits]

    def _full(self) -> dict[int, bytes]:
        waiting = self._waiting()
        return self._contents | {
            inode: _edited(self._contents.get(inode, b""), edits) for inode, edits in waiting
        }

    def _prefix(self, inode: int, before: int) -> bytes:
        edits = [edit for index, edit in self._edits.get(inode, []) if index < before]
        return _edited(self._contents.get(inode, b""), edits)

    def _tree(self, entries: Iterable[Entries], contents: dict[int, bytes]) -> Tree:
        names = dict(self._names)
        for one in entries:
            names[one.folder] = _renamed(names.get(one.folder, {}), one)
        tree: Tree = {}
        self._walk(ROOT, "", names, contents, tree)
        return tree

    def _walk(
        self, folder: int, path: str, names: dict[int, dict[str, int]], contents: dict[int, bytes], tree: Tree
    ) -> None:
        for name, inode in names.get(folder, {}).items():
            if inode in self._folders:
                tree[f"{path}{name}/"] = b""
                self._walk(inode, f"{path}{name}/", names, contents, tree)
            else:
                tree[path + name] = contents.get(inode, b"")


def _renamed(names: dict[str, int], entries: Entries) -> dict[str, int]:
    after = dict(names)
    for name, inode in entries.changes:
        if inode is None:
            after.pop(name, None)
        else:
            after[name] = inode
    return after


def _edited(content: bytes, edits: Iterable[Edit]) -> bytes:
    for edit in edits:
        content = _after(content, edit)
    return content


@lru_cache(maxsize=10_000)
def _after(content: bytes, edit: Edit) -> bytes:
    return edit.on(content)  # the same object for the same edit: states share what they have in common


def _selections(entries: list[Entries]) -> Iterator[list[Entries]]:
    """Which of these changes of folders may have come to the disk."""
    count = len(entries)
    if count <= SUBSETS_MAX:
        for size in range(count + 1):
            yield from (list(some) for some in combinations(entries, size))
        return
    for index in range(count + 1):
        yield entries[:index]
    for index in range(count):
        yield entries[:index] + entries[index + 1 :]
        yield [entries[index]]


def _variants(content: bytes, edits: list[Edit], last: Op, rng: Random) -> Iterator[bytes]:
    """What a strict file system may make of a file's edits that nobody waited for."""
    early, late = edits[:-EDITS_MAX], edits[-EDITS_MAX:]
    after_early, whole = _edited(content, early), _edited(content, edits)
    yield content.ljust(len(whole), b"\0")
    yield from _beginnings(after_early, late, 0, last, rng)
    for index, edit in enumerate(late):
        yield _after(content, edit)
        yield _edited(after_early, late[:index] + late[index + 1 :])
    for torn in _torn(_edited(content, edits[:-1]), edits[-1], False, rng):
        yield torn.ljust(len(whole), b"\0")


def _beginnings(content: bytes, edits: list[Edit], least: int, last: Op, rng: Random) -> Iterator[bytes]:
    """A file after each number of its edits, from *least* on, and with the last of them torn."""
    for count in range(least, len(edits) + 1):
        yield _edited(content, edits[:count])
    if least < len(edits):
        yield from _torn(_edited(content, edits[:-1]), edits[-1], edits[-1] is last, rng)


def _torn(content: bytes, edit: Edit, just_done: bool, rng: Random) -> Iterator[bytes]:
    if isinstance(edit, Write) and len(edit.data) > 1:
        size = len(edit.data)
        cuts = {1, size // 2, max(1, size - 2), size - 1, rng.randrange(1, size)}
        if just_done and size <= ROW_MAX:
            cuts |= set(range(rng.randrange(1, CUT_STEP + 1), size, CUT_STEP))
        for cut in sorted(cuts):
            yield Write(edit.path, edit.inode, edit.offset, edit.data[:cut]).on(content)
