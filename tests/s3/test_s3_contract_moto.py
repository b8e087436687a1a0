from __future__ import annotations

import pytest

from anabranch.engine.errors import TemporaryError

from .s3_contract import S3Contract

pytestmark = pytest.mark.s3


class TestS3OnMoto(S3Contract):
    checks_credentials = False
    errors_of_a_removed_upload = (TemporaryError,)  # it answers 500
    tells_upload_age = False  # every upload began in 2010

    @pytest.fixture
    def server(self, moto):
        return moto
