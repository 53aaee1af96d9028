"""What a real program does to a disk, recorded from its system calls."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from tests.sim.powercut import ROOT, Entries, Op, Recording, Resize, Send, Sync, Tree, Write

MADE = "openat,open,creat,mkdir,mkdirat,link,linkat,symlink,symlinkat"
MOVED = "rename,renameat,renameat2,unlink,unlinkat,rmdir"
WRITTEN = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,lseek,copy_file_range,sendfile"
SYNCED = "fsync,fdatasync,sync,syncfs,sync_file_range"
OTHER = "close,dup,dup2,dup3,sendto,sendmsg"
CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+|\?)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
AT_ONCE = ("send", "close(")  # before they return, bytes may have left and a descriptor may be another's
PATIENCE_S = 10.0


class NotModelled(RuntimeError):
    """The program did something to the watched folder whose effect on a disk is not described here."""


def why_not() -> str | None:
    """What keeps this machine from recording, None if nothing does."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is missing: apt install strace"
    tried = subprocess.run([strace, "-o", os.devnull, sys.executable, "-c", ""], capture_output=True)
    if tried.returncode:
        return "strace may not trace here: allow ptrace (--cap-add SYS_PTRACE in a container)"
    return None


def traced(trace: Path, command: list[str]) -> list[str]:
    """*command*, with its system calls written to *trace*; the process started is the program itself."""
    calls = ",".join((MADE, MOVED, WRITTEN, SYNCED, OTHER))
    options = ["-D", "-f", "--seccomp-bpf", "-xx", "-s", "1000000"]
    return ["strace", *options, "-e", f"trace={calls}", "-o", str(trace), *command]


def wait_for_end(trace: Path, pid: int) -> None:
    """The recorder outlives the recorded for a moment.

    Raises:
        TimeoutError: it never noticed that the process has ended.
    """
    end_s = time.monotonic() + PATIENCE_S
    last = re.compile(rf"^{pid} +\+\+\+ .* \+\+\+$", re.MULTILINE)
    while not last.search(trace.read_text()):
        if time.monotonic() > end_s:
            raise TimeoutError(f"{trace} has no end")
        time.sleep(0.01)


@dataclass(frozen=True)
class _Call:
    name: str
    arguments: list[str]
    texts: list[bytes]
    result: int
    began: int  # how many operations had been done when it was asked for

    @property
    def fd(self) -> int:
        return int(self.arguments[0]) if self.arguments[0].isdigit() else -1


@dataclass
class _Open:
    inode: int
    append: bool
    position: int = 0


class Reader:
    """Turns traces, one process after another on one disk, into a recording of what was done below *root*."""

    def __init__(self, root: Path, ignore: Container[str] = ()) -> None:
        """
        Args:
            root: the mount point, as it were; absolute, and empty when the recording begins.
            ignore: names of files that are left out of it.
        """
        self.recording = Recording()
        self._root = str(root)
        self._ignore = ignore
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._paths: dict[int, str] = {ROOT: ""}
        self._sizes: dict[int, int] = {}
        self._files: dict[int, _Open] = {}
        self._handlers = {
            ("open", "openat"): self._open,
            ("mkdir", "mkdirat"): self._mkdir,
            ("rename", "renameat", "renameat2"): self._rename,
            ("unlink", "unlinkat", "rmdir"): self._unlink,
            ("write", "pwrite64"): self._write,
            ("ftruncate",): self._resize,
            ("lseek",): self._seek,
            ("fsync", "fdatasync"): self._sync,
            ("close",): self._close,
            ("sendto", "sendmsg"): self._send,
        }

    def lay(self, tree: Tree) -> None:
        """Begin with a disk that holds *tree* for sure."""
        for path, content in sorted(tree.items()):
            inode = self._create(path.rstrip("/"), is_folder=path.endswith("/"))
            if content:
                self._do(Write(path, inode, 0, content))
                self._sizes[inode] = len(content)
        for inode, path in self._paths.items():
            self._do(Sync(path, inode, len(self.recording.ops)))
        self.recording.first = len(self.recording.ops)

    def read(self, trace: Path) -> None:
        """Add what one process and its threads did.

        Raises:
            NotModelled: something in it has no place in a recording.
        """
        self._files = {}
        begun: dict[str, tuple[int, str]] = {}  # thread -> its call that has not returned
        for line in trace.read_text().splitlines():
            thread, _, text = line.partition(" ")
            text, began = text.strip(), len(self.recording.ops)
            if text.startswith("<... "):
                began, head = begun.pop(thread)
                text = head + text.partition("resumed>")[2]
            elif text.endswith("<unfinished ...>"):
                text = text.removesuffix("<unfinished ...>").rstrip()
                begun[thread] = began, text
                if not text.startswith(AT_ONCE):
                    continue
                begun[thread], text = (began, ""), f"{text}) = 0"
            self._call(text, began)

    def _call(self, text: str, began: int) -> None:
        match = CALL.match(text)
        if match is None or match[3] == "?" or int(match[3]) < 0:
            return  # a signal, an exit, a call that failed or died with its process
        texts = [bytes.fromhex(found.replace("\\x", "")) for found in TEXT.findall(match[2])]
        call = _Call(match[1], match[2].split(", "), texts, int(match[3]), began)
        for names, handle in self._handlers.items():
            if call.name in names:
                handle(call)
                return
        if call.name == "sync" or call.fd in self._files or any(map(self._inside, texts)):
            raise NotModelled(text[:200])

    def _do(self, op: Op) -> None:
        self.recording.ops.append(op)

    def _inside(self, path: bytes) -> str | None:
        """A path below the root as this recording names it, None for any other."""
        text = path.decode("utf-8", "replace")
        inside = f"{text}/".startswith(f"{self._root}/") and text.rpartition("/")[2] not in self._ignore
        return text[len(self._root) + 1 :] if inside else None

    def _place(self, path: str) -> tuple[int, str]:
        """The folder that a path is in, and its name there."""
        *parents, name = path.split("/")
        folder = ROOT
        for parent in parents:
            folder = self._names[folder][parent]
        return folder, name

    def _find(self, path: str) -> int | None:
        if not path:
            return ROOT
        folder, name = self._place(path)
        return self._names[folder].get(name)

    def _create(self, path: str, is_folder: bool) -> int:
        folder, name = self._place(path)
        inode = len(self._paths)
        self._paths[inode] = path
        self._sizes[inode] = 0
        if is_folder:
            self._names[inode] = {}
            self.recording.folders.add(inode)
        self._names[folder][name] = inode
        self._do(Entries(path, folder, ((name, inode),)))
        return inode

    def _open(self, call: _Call) -> None:
        flags = next(argument for argument in call.arguments if argument.startswith("O_")).split("|")
        path = self._inside(call.texts[0])
        if path is None:
            return
        if "O_TMPFILE" in flags:
            raise NotModelled("O_TMPFILE")
        inode = self._find(path)
        if inode is None:
            inode = self._create(path, is_folder=False)
        if "O_TRUNC" in flags and self._sizes[inode]:
            self._do(Resize(path, inode, 0))
            self._sizes[inode] = 0
        self._files[call.result] = _Open(inode, "O_APPEND" in flags)

    def _mkdir(self, call: _Call) -> None:
        if path := self._inside(call.texts[0]):
            self._create(path, is_folder=True)

    def _rename(self, call: _Call) -> None:
        before, after = map(self._inside, call.texts)
        if before is None and after is None:
            return
        if before is None or after is None or self._place(before)[0] != self._place(after)[0]:
            raise NotModelled(f"a rename from one folder to another: {call.texts}")
        folder, name = self._place(after)
        inode = self._names[folder].pop(self._place(before)[1])
        self._names[folder][name] = inode
        self._paths[inode] = after
        self._do(Entries(after, folder, ((self._place(before)[1], None), (name, inode))))

    def _unlink(self, call: _Call) -> None:
        if path := self._inside(call.texts[0]):
            folder, name = self._place(path)
            del self._names[folder][name]
            self._do(Entries(path, folder, ((name, None),)))

    def _write(self, call: _Call) -> None:
        file = self._files.get(call.fd)
        if file is None:
            return
        size, data = self._sizes[file.inode], call.texts[0][: call.result]
        at = size if file.append else file.position
        if call.name == "pwrite64":
            at = size if file.append else int(call.arguments[3])
        else:
            file.position = at + len(data)
        self._sizes[file.inode] = max(size, at + len(data))
        self._do(Write(self._paths[file.inode], file.inode, at, data))

    def _resize(self, call: _Call) -> None:
        file = self._files.get(call.fd)
        if file is not None:
            self._sizes[file.inode] = size = int(call.arguments[1])
            self._do(Resize(self._paths[file.inode], file.inode, size))

    def _seek(self, call: _Call) -> None:
        if call.fd in self._files:
            self._files[call.fd].position = call.result

    def _sync(self, call: _Call) -> None:
        file = self._files.get(call.fd)
        if file is not None:
            self._do(Sync(self._paths[file.inode], file.inode, call.began))

    def _close(self, call: _Call) -> None:
        self._files.pop(call.fd, None)

    def _send(self, call: _Call) -> None:
        self._do(Send(b"".join(call.texts)))
