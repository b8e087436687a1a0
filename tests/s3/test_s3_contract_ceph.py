from __future__ import annotations

import pytest

from .s3_contract import S3Contract

pytestmark = pytest.mark.s3


class TestS3OnCeph(S3Contract):
    @pytest.fixture
    def server(self, ceph):
        return ceph
