"""Checksums: taken for a manifest, and compared with the lines of one."""

from __future__ import annotations

import os
import time

from pcopy import filesystem as fs
from pcopy.account import Account
from pcopy.handles import Pair
from pcopy.manifest import BadLine, parse, record
from pcopy.options import Hash
from pcopy.outcome import Failure
from pcopy.reading import Stopped
from pcopy.verdict import Fate
from pcopy.work import Check, Sums


def take(work: Account, unit: Sums) -> None:
    """Take the checksums of files for the manifest."""
    pair, tree = pair_of(work, unit), work.job.trees[unit.tree]
    top, kind = os.path.basename(tree.destination) if tree.depth else "", work.job.options.sums or Hash.SHA256
    for done, name in enumerate(unit.names):
        if done and time.monotonic() >= work.deadline:
            work.stack.append(unit._replace(names=unit.names[done:]))
            return
        target = unit.rename or name
        try:
            digest = work.copier.auditor.sum(pair, name, target, unit.copied)
        except Stopped:
            work.stack.append(unit._replace(names=unit.names[done:]))
            work.deadline = 0.0
            return
        except OSError as error:
            work.sum_failed(unit, name, error)
        else:
            if digest:
                path = "/".join(part for part in (top, unit.path, target) if part)
                work.outcome.sums.append(record(path, digest, kind))


def pair_of(work: Account, unit: Sums) -> Pair:
    """The copy of a directory, and the directory, unless that has gone by now: what was copied of it is in the manifest."""
    try:
        return work.handles.pair(unit.tree, unit.path)
    except (FileNotFoundError, NotADirectoryError):
        return work.handles.pair(~unit.tree, unit.path)


def check(work: Account, unit: Check) -> None:
    """Compare files with the lines of a manifest."""
    tree = work.job.trees[unit.tree]
    top = fs.open_top(tree.source, tree.source_inode)
    try:
        for done, line in enumerate(unit.lines):
            late = bool(done) and time.monotonic() >= work.deadline
            if late or not check_line(work, unit, done, line, top):
                work.stack.append(unit.part(done))
                break
    finally:
        fs.close_read(top)


def check_line(work: Account, unit: Check, number: int, line: bytes, top: int) -> bool:
    """Compare one file. False if the run is to stop before that is done."""
    try:
        named = parse(line)
    except BadLine:
        reason = f"line {unit.first + number:,}: is no checksum and name as sha256sum and b3sum write them"
        work.fail(Failure(unit.manifest, "check", None, reason))
        return True
    if named is None:  # nothing to be accounted for
        work.outcome.tally.found -= 1
        work.outcome.listed -= 1
        return True
    work.outcome.current = named[0]
    try:
        size = work.copier.auditor.check(top, *named)
    except Stopped:
        work.deadline = 0.0
        return False
    except OSError as error:
        work.check_failed(unit.part(number, number + 1), named[0], error)
    else:
        work.count(Fate.FILE)
        work.outcome.tally.bytes += size
        work.event("good", unit, named[0])
    return True
