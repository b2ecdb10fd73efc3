"""The end of an acquisition: open every file again, settle the account, write the master file."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tango_stddaq.errors import FileError
from tango_stddaq.io import checking_files, master_file
from tango_stddaq.io.creation import FILE_ERRORS, FileRules, reason_of
from tango_stddaq.io.identity import as_user
from tango_stddaq.io.master_file import Subject
from tango_stddaq.io.stored_images import StoredFile, blocks_of
from tango_stddaq.processing.acquisition import Account, Settlement
from tango_stddaq.stats import Ledger, LossReason

_REASONS: Final = frozenset(LossReason)
Ranges = Iterable[tuple[int, int]]


@dataclass(slots=True)
class Conclusion:
    """What became of an acquisition.

    Attributes
    ----------
    ledger
        From what the files hold.
    failures
        What is wrong with the files.
    has_master
        Whether the final master file is there.
    """

    ledger: Ledger
    failures: list[str] = field(default_factory=list)
    has_master: bool = False


class MasterFile:
    """The master file of one acquisition.

    Parameters
    ----------
    path
        Where it lies.
    files
        Of the writers.

    Raises
    ------
    FileError
        If it cannot be created.
    """

    def __init__(self, path: Path, subject: Subject, files: Sequence[Path], rules: FileRules) -> None:
        self.path = path
        self.subject = subject
        self.files = list(files)
        self._rules = rules
        master_file.begin(path, subject, files, rules)
        self._made = master_file.identity_of(path)

    def is_ours(self) -> bool:
        """Return whether it is still the file that was made here."""
        return self._made is not None and master_file.identity_of(self.path) == self._made

    def conclude(
        self, account: Account, overwritten: Ranges, end_reason: Callable[[list[str]], str]
    ) -> Conclusion:
        """Read the writers' files back and put the final master in the place of the first one.

        Parameters
        ----------
        overwritten
            Ids (first, last) that writers lost and could not put in their files.
        end_reason
            Gets the failures; returns why the acquisition ended.
        """
        failures: list[str] = []
        settlement = Settlement(account)
        for first, last in overwritten:
            settlement.add_lost(first, last, LossReason.OVERWRITTEN)
        with ExitStack() as stack, as_user(self._rules.user_id):
            files = []
            for path in self.files:
                try:
                    file = stack.enter_context(StoredFile(path, self.subject.detector_name))
                except FileError as error:
                    failures.append(str(error))
                    continue
                files.append(file)
                if not file.closed:
                    failures.append(
                        f"{path}: was not closed by its writer; it holds {file.n_images} images"
                    )
                _add_lost(settlement, file)
            return self._settle(settlement, files, failures, end_reason)

    def _settle(
        self,
        settlement: Settlement,
        files: list[StoredFile],
        failures: list[str],
        end_reason: Callable[[list[str]], str],
    ) -> Conclusion:
        rules = replace(self._rules, overwrite=self._rules.overwrite or self.is_ours())
        conclusion = Conclusion(Ledger(), failures)
        try:
            for block in blocks_of(files):
                rows = block.column([file.metadata for file in files])
                settlement.add_stored(rows["image_id"], rows["status"])
            conclusion.ledger = settlement.ledger()
            reason = end_reason(failures)
            master_file.create(self.path, self.subject, files, conclusion.ledger, reason, rules)
            _check_master(self.path, sum(file.n_images for file in files))
            conclusion.has_master = True
        except (FileError, *FILE_ERRORS) as error:
            said = isinstance(error, FileError)
            failures.append(str(error) if said else f"{self.path}: cannot be made: {reason_of(error)}")
            conclusion.ledger = settlement.ledger()
        return conclusion


def _check_master(path: Path, n_images: int) -> None:
    """Open the master again.

    Raises
    ------
    FileError
        If it does not show all images.
    """
    found = checking_files.master_of(path)
    if found is None or {found.n_images, found.n_ids} != {n_images}:
        raise FileError(f"{path}: does not show the {n_images} images that the files hold")


def _add_lost(settlement: Settlement, file: StoredFile) -> None:
    for first, last, reason in file.lost().tolist():
        text = reason.decode(errors="replace")
        if text in _REASONS:
            settlement.add_lost(first, last, LossReason(text))
