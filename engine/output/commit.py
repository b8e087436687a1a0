"""The commit protocol: the only file that publishes plan, receipts, side files, index and manifest.

Order of events: plan (exclusive) -> shards, each followed by its receipt -> side files -> tables -> index ->
manifest (exclusive). A directory with a manifest is complete; everything before it can be resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from ..errors import InputError, IntegrityError, OutputConflictError
from ..json_text import readable_json, sealed_json, unsealed
from ..models import INDEX_NAME
from ..plan import NUMERICS, Plan, Receipt, Round, SideFile, Survey, SurveyPart
from ..storage import Store
from .emr_files import part_files, with_scale
from .input_ranges import ChangedInputError, InputRanges, gather_ranges
from .manifest import (
    INPUT_RANGES_NAME,
    INPUTS_NAME,
    MANIFEST_NAME,
    PLAN_ATTRIBUTE,
    PLAN_NAME,
    RECEIPTS_FOLDER,
    SURVEY_FOLDER,
    SURVEY_NAME,
    TASKS_NAME,
    TENSORS_NAME,
    FileEntry,
    Manifest,
    ReadFile,
    decode_manifest,
    encode_manifest,
)
from .owner import owner_of
from .receipts import (
    StoredReceipt,
    check_narrowed,
    counts_elements,
    decode_receipt,
    decode_stored,
    decode_stored_part,
    decode_survey_part,
    encode_receipt,
    encode_survey_part,
    rows_limit,
)
from .tables import survey_table, tasks_table, tensors_table, write_table
from .watch import Watch, vanished_error

WHOLE_BYTES = 4 << 20
"""Side files up to this size are written in one piece."""
COPYING = "copy"
"""Marks temporary files of side files that are being copied."""

State = Literal["new", "started", "finished"]


class OutputDirectory:
    """An output directory and how far it has come; keeps no state that the directory does not have.

    Args:
        plan: the plan.
        store: the output directory.
        note: is told of what is there and not what was written, and so is made again.
    """

    def __init__(self, plan: Plan, store: Store, note: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self.store = store
        self._note = note
        self._watch = Watch(store)

    # -- plan ----------------------------------------------------------------------------------------------------

    def check(self) -> State:
        """How far the directory is; writes nothing.

        Raises:
            OutputConflictError: another plan or other files are there.
        """
        found = owner_of(self.store, self.plan.plan_id)
        if found not in (None, self.plan.plan_id):
            raise OutputConflictError(
                f"{self.store.url} belongs to another plan: expected {self.plan.plan_id[:16]}, found {found[:16]}",
                "recipe or inputs differ from those of the run that started there: use another output directory, or "
                "remove this one if you do not need it",
            )
        try:
            if self.manifest() is not None:
                return "finished"
        except IntegrityError:
            if found is None:  # nobody knows whose it was
                raise
        if found is None and self.store.list():
            raise OutputConflictError(
                f"{self.store.url} is not empty and holds no plan of a merge", "name an empty or new directory"
            )
        return "new" if found is None else "started"

    def open(self) -> None:
        """Claim the directory for this plan, or find it claimed by the same plan.

        A plan or table of tasks that is damaged is written again, as both follow from recipe and inputs.

        Raises:
            OutputConflictError: another plan or other files are there.
        """
        self.check()
        plan = sealed_json(self.plan.describe(), readable_json)
        if not self.store.create(PLAN_NAME, plan):
            self.check()  # somebody was faster: the same plan is welcome
            self._mend(PLAN_NAME, plan)
        self._mend(TASKS_NAME, write_table(tasks_table(self.plan)))

    def _mend(self, name: str, data: bytes) -> None:
        try:
            if self.store.info(name).size == len(data) and self.store.read_bytes(name, len(data)) == data:
                return
            self._unfit(name, "it is not what the plan gives")
        except FileNotFoundError:
            pass
        self.store.replace(name, data)

    def bind_inputs(self, host: str, identity: Mapping[str, Sequence[int]]) -> bool:
        """Give up what was made from other files than those that are there now, even if name, size and time are equal.

        Args:
            host: where `identity` means something. What another host noted cannot be compared and is believed.
            identity: by URL of an input file, numbers that another file cannot have.

        Returns:
            Whether they could be compared.
        """
        record = {"plan_id": self.plan.plan_id, "host": host, "files": {url: [*of] for url, of in identity.items()}}
        try:
            found = unsealed(self.store.read_bytes(INPUTS_NAME))
        except FileNotFoundError:
            found = {}
        except (InputError, ValueError):
            found = {"host": host}  # damaged: nobody knows what was read
        if found == record:
            return True
        if found.get("host") == host and found.get("files") != record["files"]:
            self.start_over("inputs were replaced by other files, or were changed")
        self.store.replace(INPUTS_NAME, sealed_json(record))
        return host == found.get("host")

    def start_over(self, reason: str) -> None:
        """Give up all that was made so far but the files themselves, which are written over."""
        made = [*self.store.list(RECEIPTS_FOLDER), *self.store.list(SURVEY_FOLDER)]
        if made:
            self._note(f"{self.store.url} is made again: {reason}")
        for name in made:
            self.store.delete(name)

    # -- receipts ------------------------------------------------------------------------------------------------

    def receipts(self) -> dict[int, Receipt]:
        """Finished shards by position: those with a receipt of this plan whose file exists with the receipt's size."""
        found: dict[int, Receipt] = {}
        sizes = {shard.name: position for position, shard in enumerate(self.plan.shards)}
        for name in self.store.list(RECEIPTS_FOLDER):
            shard_name = name.rsplit("/", 1)[-1].removesuffix(".json")
            if shard_name in sizes and (receipt := self.receipt(sizes[shard_name])) is not None:
                found[sizes[shard_name]] = receipt
        return found

    def shards_with_receipts(self) -> dict[int, FileEntry]:
        """What the files of finished shards must be, as far as their receipts can be read."""
        found = {}
        for shard in range(len(self.plan.shards)):
            # What does not fit is told when its receipt is asked for.
            with suppress(FileNotFoundError, IntegrityError, InputError):
                stored = decode_stored(self.store.read_bytes(self._receipt_name(shard)))
                if self._is_of(stored, shard):
                    found[shard] = FileEntry(size=stored.size, sha256=stored.sha256)
        return found

    def receipt(self, shard: int) -> Receipt | None:
        """The receipt of one shard, or None when it must be made (again)."""
        name = self._receipt_name(shard)
        try:
            stored = decode_stored(self.store.read_bytes(name))
            if not self._is_of(stored, shard):
                raise IntegrityError("it is not of the file that is there")
            limit = min(stored.rows.size, rows_limit(self.plan, shard))
            return decode_receipt(stored, self.store.read_bytes(self._rows_name(shard), limit), self.plan)
        except FileNotFoundError:
            return None
        except (IntegrityError, InputError) as error:
            self._unfit(name, error.message)
            return None

    def _is_of(self, stored: StoredReceipt, shard: int) -> bool:
        """Whether it is the receipt of the shard that is there, as far as one can see without reading it."""
        expected = self.plan.shards[shard]
        size = self.store.info(expected.name).size
        attributes = self.store.attributes(expected.name)
        owner = self.plan.plan_id if attributes is None else attributes.get(PLAN_ATTRIBUTE)
        if (stored.shard, stored.name) != (shard, expected.name):
            return False
        return stored.plan_id == owner == self.plan.plan_id and stored.size == size == expected.size

    def publish_receipt(self, receipt: Receipt) -> None:
        """Record that a shard is durable; called after the shard became visible."""
        record, table = encode_receipt(receipt)
        self.store.replace(self._rows_name(receipt.shard), table)
        self.store.replace(self._receipt_name(receipt.shard), record)

    def see(self, shard: int) -> None:
        """Remember the file of a finished shard: the manifest is written only while it is still this one."""
        self._watch.see(self.plan.shards[shard].name)

    def withdraw_receipt(self, shard: int, reason: str) -> None:
        """Forget a shard that turned out not to be what its receipt says."""
        self._unfit(self.plan.shards[shard].name, reason)
        self.store.delete(self._receipt_name(shard))

    def _unfit(self, name: str, reason: str) -> None:
        self._note(f"{self.store.url}/{name} is made again: {reason}")

    def _receipt_name(self, shard: int) -> str:
        return f"{RECEIPTS_FOLDER}/{self.plan.shards[shard].name}.json"

    def _rows_name(self, shard: int) -> str:
        return f"{RECEIPTS_FOLDER}/{self.plan.shards[shard].name}.parquet"

    # -- survey --------------------------------------------------------------------------------------------------

    def publish_survey_parts(self, round_: Round, parts: Sequence[SurveyPart]) -> None:
        """Keep the statistics of one shard for this plan, whichever plan's survey took them."""
        for part in parts:
            own = part.model_copy(update={"plan_id": self.plan.plan_id})
            name = _part_name(round_, part.model, part.shard)
            record, table = encode_survey_part(own)
            if table is not None:
                self.store.replace(_table_of(name), table)
            self.store.replace(name, record)

    def survey_parts(self, round_: Round, shard: int) -> list[SurveyPart] | None:
        """All models' parts of one shard, or None when one is missing or not what was written."""
        before = self.survey_parts(Round("high"), shard) if round_.kind == "low" else None
        if round_.kind == "low" and before is None:
            return None
        parts = []
        for model in range(len(self.plan.models)):
            name = _part_name(round_, model, shard)
            try:
                part = self._survey_part(name, round_, model, shard)
                if before is not None:
                    check_narrowed(part, before[model])
                parts.append(part)
            except FileNotFoundError:
                return None
            except (IntegrityError, InputError) as error:
                self._unfit(name, error.message)
                return None
        return parts

    def _survey_part(self, name: str, round_: Round, model: int, shard: int) -> SurveyPart:
        stored = decode_stored_part(self.store.read_bytes(name))
        limit = rows_limit(self.plan, shard)
        table = None if counts_elements(round_.kind) else self.store.read_bytes(_table_of(name), limit)
        return decode_survey_part(stored, table, self.plan, round_, model, shard)

    # -- the end -------------------------------------------------------------------------------------------------

    def manifest(self) -> Manifest | None:
        """The manifest of a finished output of this plan, or None.

        Raises:
            OutputConflictError: the directory was finished by another plan.
        """
        try:
            data = self.store.read_bytes(MANIFEST_NAME)
        except FileNotFoundError:
            return None
        manifest = decode_manifest(data, f"{self.store.url}/{MANIFEST_NAME}")
        if manifest.plan_id != self.plan.plan_id:
            raise OutputConflictError(f"{self.store.url} was finished by another plan", "use another output directory")
        return manifest

    def finish(
        self, receipts: Mapping[int, Receipt], survey: Survey | None, side: Mapping[str, bytes | SideFile]
    ) -> Manifest:
        """Write side files, tables and the index, then the manifest: the commit.

        Before the manifest every file is looked at again, as a manifest says that all of them are there, and once more
        after it: what vanished meanwhile takes the manifest with it.

        Args:
            receipts: one per shard of the plan.
            survey: what whole models decided, where the plan asks for it.
            side: config and tokenizer files by name, those of any size to be copied in pieces.

        Raises:
            IntegrityError: a file that was published is gone, or is another one.
            InputError: a file to be copied changed since the plan was made, or shards were made from different bytes of
                one input.
        """
        assert len(receipts) == len(self.plan.shards), "every shard has a receipt"
        ordered = [receipts[i] for i in range(len(self.plan.shards))]
        ranges = self._ranges(ordered)
        files = {r.name: FileEntry(size=r.size, sha256=r.sha256) for r in ordered}
        for name, data in sorted({**side, **part_files(self.plan, ordered)}.items()):
            files[name] = self._publish(name, data)
        table = tensors_table(self.plan, ordered)
        self._publish(TENSORS_NAME, write_table(table.arrow))
        tables = {TENSORS_NAME: table.digest}
        if per_tensor := [row for row in survey.rows if "tensor" in row] if survey is not None else []:
            arrow, tables[SURVEY_NAME] = survey_table(per_tensor)
            self._publish(SURVEY_NAME, write_table(arrow))
        self._publish(INPUT_RANGES_NAME, write_table(ranges.arrow))
        tables[INPUT_RANGES_NAME] = ranges.digest
        if len(ordered) > 1:
            files[INDEX_NAME] = self._publish(INDEX_NAME, index_json(self.plan))
        summary = with_scale(self.plan, ordered, table.summary)
        manifest = self._manifest(ordered, files, survey, summary, tables, ranges.files)
        self._check_published(manifest)
        self._publish_manifest(manifest)
        try:
            self._check_published(manifest)
        except IntegrityError:
            self.store.delete(MANIFEST_NAME)
            raise
        return manifest

    def _ranges(self, receipts: Sequence[Receipt]) -> InputRanges:
        """What was read of the inputs; where shards were made from different bytes, they are to be made again."""
        try:
            return gather_ranges(self.plan, receipts)
        except ChangedInputError as error:
            for shard in error.shards:
                self.withdraw_receipt(shard, "its inputs changed while they were read")
            raise

    def _check_published(self, manifest: Manifest) -> None:
        if problems := self._watch.problems(manifest):
            raise vanished_error(self.store.url, problems)

    def finished(self) -> Manifest | None:
        """The manifest of an output of this plan that has all its files; None: something is still to be made.

        Files that are missing, have another size, or changed after the manifest and are not what it says, take the
        manifest with them, so that they are made again. So is a manifest that is damaged, where the plan is there.

        Raises:
            OutputConflictError: the directory was finished by another plan.
            IntegrityError: the manifest is damaged, and nothing says whose it was.
        """
        try:
            manifest = self.manifest()
        except IntegrityError as error:
            if owner_of(self.store, self.plan.plan_id) != self.plan.plan_id:
                raise
            self._unfit(MANIFEST_NAME, error.message)
            self.store.delete(MANIFEST_NAME)
            return None
        if manifest is None:
            return None
        problems = self._watch.problems_since(manifest, [shard.name for shard in self.plan.shards])
        for problem in problems:
            self._unfit(problem.file, problem.text)
        if problems:
            self.store.delete(MANIFEST_NAME)
        return None if problems else manifest

    def clean(self, manifest: Manifest) -> None:
        """After the commit: remove what killed runs left behind; whoever still writes only repeats finished work."""
        receipts = [name(i) for i in range(len(self.plan.shards)) for name in (self._receipt_name, self._rows_name)]
        own = [PLAN_NAME, TASKS_NAME, INPUTS_NAME, MANIFEST_NAME, TENSORS_NAME, SURVEY_NAME, INPUT_RANGES_NAME]
        names = [*own, *manifest.files, *receipts, *self.store.list(SURVEY_FOLDER)]
        for leftover in self.store.leftovers(names):
            self.store.delete_leftover(leftover)

    def _publish(self, name: str, content: bytes | SideFile) -> FileEntry:
        if isinstance(content, SideFile) and content.info.size > WHOLE_BYTES:
            entry = self._copy(name, content)
        else:
            data = content if isinstance(content, bytes) else content.read()
            self.store.replace(name, data)
            entry = FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())
        self._watch.see(name)
        return entry

    def _copy(self, name: str, side: SideFile) -> FileEntry:
        """Write a file of any size from its pieces, hashed on the way."""
        digest = hashlib.sha256()
        writer = self.store.writer(name, side.info.size, {PLAN_ATTRIBUTE: self.plan.plan_id}, COPYING)
        try:
            for piece in side.pieces():
                digest.update(piece)
                writer.write(piece)
            writer.commit()
        except BaseException:
            writer.discard()
            raise
        return FileEntry(size=side.info.size, sha256=digest.hexdigest())

    def _manifest(
        self,
        receipts: Sequence[Receipt],
        files: Mapping[str, FileEntry],
        survey: Survey | None,
        summary: list[dict[str, Any]],
        tables: dict[str, str],
        read: list[ReadFile],
    ) -> Manifest:
        rows = [row for receipt in receipts for row in receipt.tensors]
        return Manifest(
            plan_id=self.plan.plan_id,
            numerics=NUMERICS,
            recipe=dict(self.plan.canonical_recipe),
            inputs=[dict(entry) for entry in self.plan.inputs],
            files=dict(sorted(files.items())),
            merged_tensors=sum(row.action == "merged" for row in rows),
            copied_tensors=sum(row.action == "copied" for row in rows),
            parameters=sum(task.numel for task in self.plan.tasks),
            summary=summary,
            notes=list(self.plan.notes),
            warnings=list(self.plan.warnings),
            read=read,
            tables=tables,
            survey=[dict(row) for row in survey.rows if "tensor" not in row] if survey is not None else [],
        )

    def _publish_manifest(self, manifest: Manifest) -> None:
        data = encode_manifest(manifest)
        # Written last: whoever sees this file may rely on everything else.
        if not self.store.create(MANIFEST_NAME, data) and self.store.read_bytes(MANIFEST_NAME) != data:
            raise OutputConflictError(f"{self.store.url} was finished by another plan", "use another output directory")


def _part_name(round_: Round, model: int, shard: int) -> str:
    return f"{SURVEY_FOLDER}/{round_.part_name(model, shard)}"


def _table_of(name: str) -> str:
    return f"{name.removesuffix('.json')}.parquet"


def index_json(plan: Plan) -> bytes:
    """model.safetensors.index.json as Hugging Face writes it; total_size is the sum of tensor bytes."""
    where = {
        plan.tasks[i].name: shard.name
        for shard in plan.shards
        for i in shard.tasks
        if plan.tasks[i].stored != "nothing"
    }
    total = sum(task.write_bytes for task in plan.tasks)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
