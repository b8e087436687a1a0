from __future__ import annotations

import json

import pytest

from anabranch.engine.errors import ResourceError

from .fault_proxy import HttpFault, fault_proxy
from .s3_contract import PART, S3Contract, pattern
from .servers import store_of

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
    client = ceph.client()
    client.request(bucket, lambda: client.call("put_bucket_policy", Bucket=bucket, Policy=policy))
    assert store.read_bytes("x") == b"1"
    for write in (
        lambda: store.create("plan", b"1"),
        lambda: store.replace("x", b"2"),
        lambda: store.writer("big", 2 * PART, {}, "run1"),
    ):
        with pytest.raises(ResourceError, match="permission"):
            write()
    assert store.list() == ["x"]


def test_where_the_server_compares_bodies_nobody_does_it_again(ceph):
    """It refused a byte that was not the signed one, so its ETags are not looked at: no MD5 is taken for them."""
    direct, data = ceph.store(), pattern(2 * PART + 5)
    bucket, prefix = direct.url.removeprefix("s3://").split("/", 1)
    with fault_proxy(ceph.endpoint) as proxy:
        store = store_of(bucket, prefix, ceph.client(endpoint=proxy.endpoint))
        writer = store.writer("big", len(data), {"plan_id": "p"}, "run1")
        writer.write(data)
        writer.commit()
        assert proxy.count("PUT .*partNumber=1(&|$)") == 2
        proxy.script(HttpFault("PUT", times=1000, etag="0123456789abcdef" * 2))
        store.replace("small", b"123")
        assert proxy.count("PUT") == 1
    assert direct.read_bytes("big") == data


def test_bits_that_flip_on_their_way_are_refused_by_the_server_and_sent_again(ceph):
    direct, data = ceph.store(), pattern(2 * PART + 5)
    bucket, prefix = direct.url.removeprefix("s3://").split("/", 1)
    with fault_proxy(ceph.endpoint) as proxy:
        store = store_of(bucket, prefix, ceph.client(endpoint=proxy.endpoint))
        proxy.script(HttpFault("PUT", "/plan", flip_sent=1), HttpFault("PUT", "partNumber=2", flip_sent=1))
        assert store.create("plan", b"ours")
        writer = store.writer("big", len(data), {"plan_id": "p"}, "run1")
        writer.write(data)
        writer.commit()
        assert proxy.count("PUT .*partNumber=2") == proxy.count("PUT .*plan") == 2
    assert direct.read_bytes("plan") == b"ours"
    assert direct.read_bytes("big") == data
