from __future__ import annotations

import json

import pytest

from anabranch.engine.errors import ResourceError

from .s3_contract import PART, S3Contract

pytestmark = pytest.mark.s3


class TestS3OnCeph(S3Contract):
    @pytest.fixture
    def server(self, ceph):
        return ceph


def test_a_full_bucket_is_a_resource_error_and_shows_nothing(ceph):
    store = ceph.store()
    bucket = store.url.split("/")[2]
    scope = ("--quota-scope=bucket", f"--bucket={bucket}")
    ceph.admin("quota", "set", *scope, "--max-size=1048576")
    ceph.admin("quota", "enable", *scope)
    store.replace("small", b"1")
    writer = store.writer("big", PART + 1, {"plan_id": "p"}, "run1")
    writer.write(bytes(PART + 1))
    with pytest.raises(ResourceError, match="QuotaExceeded") as caught:
        writer.commit()
    writer.discard()
    assert caught.value.exit_code == 6
    assert store.list() == ["small"]
    assert store.leftovers(["big"]) == ()


def test_a_read_only_bucket_is_a_resource_error(ceph):
    store = ceph.store()
    bucket = store.url.split("/")[2]
    store.replace("x", b"1")
    deny = {
        "Effect": "Deny", "Principal": "*", "Action": ["s3:PutObject"], "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    ceph.client().request("put_bucket_policy", bucket, Bucket=bucket, Policy=policy)
    assert store.read_bytes("x") == b"1"
    for write in (
        lambda: store.create("plan", b"1"),
        lambda: store.replace("x", b"2"),
        lambda: store.writer("big", 2 * PART, {}, "run1"),
    ):
        with pytest.raises(ResourceError, match="permission"):
            write()
    assert store.list() == ["x"]
