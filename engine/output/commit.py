"""The commit protocol: the only file that publishes plan, receipts, side files, index and manifest.

Order of events: plan (exclusive) -> shards, each followed by its receipt -> side files -> tables -> index ->
manifest (exclusive). A directory with a manifest is complete; everything before it can be resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import IntegrityError, OutputConflictError
from ..json_text import readable_json
from ..plan import NUMERICS, Plan, Receipt, Round, Survey, SurveyPart
from ..storage import Store
from .emr_files import part_files, with_scale
from .manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    PLAN_ATTRIBUTE,
    PLAN_NAME,
    RECEIPTS_FOLDER,
    SURVEY_FOLDER,
    TASKS_NAME,
    TENSORS_NAME,
    FileEntry,
    Manifest,
    decode_manifest,
    decode_receipt,
    decode_survey_part,
    encode,
)
from .tables import tasks_table, tensors_table, write_table

State = Literal["new", "started", "finished"]


class OutputDirectory:
    """An output directory and how far it has come; keeps no state that the directory does not have.

    Args:
        plan: the plan.
        store: the output directory.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store

    # -- plan ----------------------------------------------------------------------------------------------------

    def check(self) -> State:
        """How far the directory is; writes nothing.

        Raises:
            OutputConflictError: another plan or other files are there.
        """
        found = self._plan_id_found()
        if found not in ("", self.plan.plan_id):
            raise OutputConflictError(
                f"{self.store.url} belongs to another plan: expected {self.plan.plan_id[:16]}, found {found[:16]}",
                "recipe or inputs differ from those of the run that started there: use another output directory, or "
                "remove this one if you do not need it",
            )
        if self.manifest() is not None:
            return "finished"
        if not found and self.store.list():
            raise OutputConflictError(
                f"{self.store.url} is not empty and holds no plan of a merge", "name an empty or new directory"
            )
        return "started" if found else "new"

    def open(self) -> None:
        """Claim the directory for this plan, or find it claimed by the same plan.

        Raises:
            OutputConflictError: another plan or other files are there.
        """
        self.check()
        if not self.store.create(PLAN_NAME, readable_json(self.plan.describe())):
            self.check()  # somebody was faster: the same plan is welcome
        if not self._exists(TASKS_NAME):
            self.store.replace(TASKS_NAME, write_table(tasks_table(self.plan)))

    def _exists(self, name: str) -> bool:
        try:
            self.store.info(name)
        except FileNotFoundError:
            return False
        return True

    def _plan_id_found(self) -> str:
        try:
            return str(json.loads(self.store.read_bytes(PLAN_NAME))["plan_id"])
        except FileNotFoundError:
            return ""
        except (ValueError, KeyError, TypeError, RecursionError):
            return "(unreadable)"

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

    def receipt(self, shard: int) -> Receipt | None:
        """The receipt of one shard, or None when it must be made (again)."""
        expected = self.plan.shards[shard]
        try:
            data = self.store.read_bytes(self._receipt_name(shard))
            size = self.store.info(expected.name).size
            attributes = self.store.attributes(expected.name)
        except FileNotFoundError:
            return None
        try:
            receipt = decode_receipt(data, self._receipt_name(shard))
        except IntegrityError:
            return None
        owner = self.plan.plan_id if attributes is None else attributes.get(PLAN_ATTRIBUTE)
        fits = receipt.plan_id == owner == self.plan.plan_id and receipt.size == size == expected.size
        return receipt if fits and receipt.name == expected.name else None

    def publish_receipt(self, receipt: Receipt) -> None:
        """Record that a shard is durable; called after the shard became visible."""
        self.store.replace(self._receipt_name(receipt.shard), encode(receipt))

    def _receipt_name(self, shard: int) -> str:
        return f"{RECEIPTS_FOLDER}/{self.plan.shards[shard].name}.json"

    # -- survey --------------------------------------------------------------------------------------------------

    def publish_survey_parts(self, round_: Round, parts: Sequence[SurveyPart]) -> None:
        """Keep the statistics of one shard for this plan, whichever plan's survey took them."""
        for part in parts:
            own = part.model_copy(update={"plan_id": self.plan.plan_id})
            self.store.replace(f"{SURVEY_FOLDER}/{round_.part_name(part.model, part.shard)}", encode(own))

    def survey_parts(self, round_: Round, shard: int) -> list[SurveyPart] | None:
        """All models' parts of one shard, or None when one is missing or belongs to something else."""
        parts = []
        for model in range(len(self.plan.models)):
            name = f"{SURVEY_FOLDER}/{round_.part_name(model, shard)}"
            try:
                part = decode_survey_part(self.store.read_bytes(name), name)
            except (FileNotFoundError, IntegrityError):
                return None
            prefix = round_.prefixes[model] if round_.prefixes else 0
            if (part.plan_id, part.kind, part.prefix) != (self.plan.plan_id, round_.kind, prefix):
                return None
            parts.append(part)
        return parts

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

    def finish(self, receipts: Mapping[int, Receipt], survey: Survey | None, side: Mapping[str, bytes]) -> Manifest:
        """Write side files, tables and the index, then the manifest: the commit.

        Args:
            receipts: one per shard of the plan.
            survey: what whole models decided, where the plan asks for it.
            side: config and tokenizer files by name.
        """
        assert len(receipts) == len(self.plan.shards), "every shard has a receipt"
        ordered = [receipts[i] for i in range(len(self.plan.shards))]
        files = {r.name: FileEntry(size=r.size, sha256=r.sha256) for r in ordered}
        for name, data in sorted({**side, **part_files(self.plan, ordered)}.items()):
            files[name] = self._publish(name, data)
        table = tensors_table(self.plan, ordered)
        self.store.replace(TENSORS_NAME, write_table(table.arrow))
        if len(ordered) > 1:
            files[INDEX_NAME] = self._publish(INDEX_NAME, index_json(self.plan))
        summary = with_scale(self.plan, ordered, table.summary)
        manifest = self._manifest(ordered, files, survey, summary, {TENSORS_NAME: table.digest})
        self._publish_manifest(manifest)
        return manifest

    def clean(self, manifest: Manifest) -> None:
        """After the commit: remove what killed runs left behind; whoever still writes only repeats finished work."""
        receipts = [self._receipt_name(i) for i in range(len(self.plan.shards))]
        own = [PLAN_NAME, TASKS_NAME, MANIFEST_NAME, TENSORS_NAME]
        names = [*own, *manifest.files, *receipts, *self.store.list(SURVEY_FOLDER)]
        for leftover in self.store.leftovers(names):
            self.store.delete_leftover(leftover)

    def _publish(self, name: str, data: bytes) -> FileEntry:
        self.store.replace(name, data)
        return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _manifest(
        self,
        receipts: Sequence[Receipt],
        files: Mapping[str, FileEntry],
        survey: Survey | None,
        summary: list[dict[str, Any]],
        tables: dict[str, str],
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
            tables=tables,
            survey=[dict(row) for row in survey.rows] if survey is not None else [],
        )

    def _publish_manifest(self, manifest: Manifest) -> None:
        data = encode(manifest)
        # Written last: whoever sees this file may rely on everything else.
        if not self.store.create(MANIFEST_NAME, data) and self.store.read_bytes(MANIFEST_NAME) != data:
            raise OutputConflictError(f"{self.store.url} was finished by another plan", "use another output directory")


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
