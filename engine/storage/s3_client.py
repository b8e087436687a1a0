"""One S3 client per process, made by s3fs: what it asks, how bodies are protected, and failures in our own words."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import botocore.config
import botocore.exceptions
import botocore.parsers
import s3fs
import urllib3.exceptions

from ..errors import AnabranchError, InputError, ResourceError, TemporaryError
from .object_client import ExpiredCredentialsError, GarbledError, ObjectClient
from .requests import AGAIN, RequestLimits
from .retry import Retry
from .s3_session import Outgoing, S3Session

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired", "InvalidToken", "400"}
_BUSY = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestLimitExceeded", "InternalError",
    "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "IncompleteBody", "BadDigest",
    "XAmzContentSHA256Mismatch", "BandwidthLimitExceeded", "EC2ThrottledException",
}  # fmt: skip
_FULL = {"QuotaExceeded", "StorageFull", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge"}
_CREDENTIAL_ERRORS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.ProfileNotFound,
    botocore.exceptions.NoRegionError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.UnauthorizedSSOTokenError,
)
_CONNECTION_ERRORS = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.parsers.ResponseParserError,
    aiohttp.ClientError,
    urllib3.exceptions.HTTPError,
    EOFError,
    OSError,
)
_EVEN_PARTS = (".r2.cloudflarestorage.com", ".s4.mega.io")
"""Hosts of servers that take no upload of which parts, but for the last, have several lengths."""
_USERINFO = re.compile(r"(?<=://)[^/@\s]*@")
OTHER_ETAGS = 3
"""So many first answers in a row are not flipped bits, but a server whose ETags are no MD5."""
_MD5 = re.compile(r"[0-9a-f]{32}")
_OTHER_BODY = {"XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest", "SignatureDoesNotMatch"}
"""What a server says that got another body than the one that was signed."""
_QUERY = re.compile(r"\?[^\s\"'<>]*")


class RefusedError(Exception):
    """An answer that the caller said it expects, by its error code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class S3Client(ObjectClient):
    """Requests to S3 by s3fs's client.

    Endpoint, profile, region, addressing style and credentials come from the configuration of fsspec and AWS
    (environment, `~/.aws`, fsspec's own files), never from recipes or URLs.

    Args:
        options: arguments of `s3fs.S3FileSystem` beyond that configuration; for tests.
    """

    def __init__(
        self, options: Mapping[str, Any] | None = None, limits: RequestLimits | None = None, retry: Retry | None = None
    ) -> None:
        super().__init__(translate, limits or RequestLimits(), retry or Retry())
        self._fs: Any = s3fs.S3FileSystem(skip_instance_cache=True, **(options or {}))
        # One place retries: not s3fs, nor botocore below it.
        self._fs.retries = 1
        self._fs.config_kwargs = {
            "connect_timeout": self.limits.connect_seconds,
            "read_timeout": self.limits.idle_seconds,
            "max_pool_connections": self.limits.requests_in_flight + 8,
            "http_session_cls": S3Session,
            **self._fs.config_kwargs,
            "retries": {"total_max_attempts": 1},
        }
        self._prepared: Any = None
        self._md5_etags: bool | None = None
        self._other_etags = 0
        self._compares: bool | None = None

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._fs.loop  # raises in a process that was forked meanwhile
        return loop

    async def renew(self) -> None:
        """See `ObjectClient.renew`."""
        await self._fs.set_session(refresh=True)

    async def call(
        self, method: str, *, expect: Collection[str] = (), body: bytes | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """One request, once.

        Args:
            method: of the botocore client, such as "head_object".
            expect: error codes that the caller handles; raised as RefusedError.
            body: what is sent, as an object's bytes.
            arguments: of the method.
        """
        if body is not None:
            arguments["Body"] = Outgoing(memoryview(body))
        try:
            await self._prepare()
            answer: dict[str, Any] = await self._fs._call_s3(method, **arguments)
        except Exception as error:
            cause = _answer_in(error)
            if cause is None:
                raise
            if (code := _code(cause)) in expect:
                raise RefusedError(code) from cause
            raise cause from None  # s3fs has put it into its own words
        if body is not None:
            await self._check_received(answer, body, f"s3://{arguments['Bucket']}/{arguments['Key']}")
        return answer

    async def _prepare(self) -> None:
        """Tell the client of this session, a new one after credentials were renewed, how bodies are signed."""
        client = await self._fs.set_session()
        if client is not self._prepared:
            client.meta.events.register("before-sign.s3.UploadPart", _sign_no_body_in_tls)
            self._prepared = client

    async def _check_received(self, answer: dict[str, Any], body: bytes, where: str) -> None:
        """Compare what a server says that it got with what was sent, where nothing else protects it on its way.

        Bodies travel with a checksum, which servers compare, but for a few that only keep it. TLS lets no bit change.
        Without it the ETag is compared, unless `learn_who_compares` found that the server does: most answer with the
        MD5 of what came, if they do not encrypt it with keys. One whose first answers are all something else has other
        ETags, which are not looked at any more.

        Raises:
            GarbledError: the server got other bytes.
        """
        etag = str(answer.get("ETag", "")).strip('"')
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
        if self._compares or self._md5_etags is False or encrypted or _MD5.fullmatch(etag) is None:
            return
        if self._is_protected:
            return
        digest = await asyncio.to_thread(lambda: hashlib.md5(body, usedforsecurity=False).hexdigest())
        if digest == etag:
            self._md5_etags = True
            return
        self._other_etags += 1
        if self._md5_etags is None and self._other_etags == OTHER_ETAGS:
            self._md5_etags = False
        else:
            raise GarbledError(f"{where}: the server got other bytes than were sent", AGAIN)

    async def learn_who_compares(self, upload: Mapping[str, Any]) -> None:
        """Find out whether the server itself refuses a body that changed on its way, unless that is known.

        It is sent one byte other than the one that was signed, as a part of an upload that nobody has sent parts of
        yet. Who keeps that needs its answers compared with an MD5 of every body, which costs more than all other
        work of an upload.

        Args:
            upload: Bucket, Key and UploadId; a part 1 that comes later takes the byte's place.
        """
        if self._compares is not None or self._is_protected:
            return
        body = Outgoing(memoryview(b"\0"), sent=memoryview(b"\1"))
        try:
            async with asyncio.timeout(self.limits.idle_seconds):
                await self._fs._call_s3("upload_part", **upload, PartNumber=1, Body=body)
        except Exception as error:  # noqa: BLE001 - the parts meet the same, and tell it
            cause = _answer_in(error)
            if cause is not None and _code(cause) in _OTHER_BODY:
                self._compares = True
        else:
            self._compares = False

    @property
    def _is_protected(self) -> bool:
        """Whether requests travel in TLS."""
        return str(self._fs.s3.meta.endpoint_url).startswith("https://")

    @property
    def takes_uneven_parts(self) -> bool:
        """Whether the server, as far as is known of it, makes an object of parts that are not equally long."""
        host = urlsplit(str(self._fs.s3.meta.endpoint_url)).hostname or ""
        return not host.endswith(_EVEN_PARTS)


@functools.cache
def shared_client() -> S3Client:
    """The client of this process."""
    return S3Client()


def redact(text: str) -> str:
    """A message without user names, passwords and queries (which hold signatures) of the URLs in it."""
    return _QUERY.sub("", _USERINFO.sub("", text))


def _sign_no_body_in_tls(request: Any, **_: Any) -> None:
    """Leave a body to TLS, which protects it as a checksum behind it would that botocore signs no body beside.

    A SHA-256 would be taken where servers are said to know no such checksums, and on the loop of all requests.
    `payload_signing_enabled` in the configuration of AWS decides, if it is there.
    """
    config = request.context["client_config"]
    own = config.s3 or {}
    if request.url.startswith("https://") and "payload_signing_enabled" not in own:
        unsigned = botocore.config.Config(s3={**own, "payload_signing_enabled": False})
        request.context["client_config"] = config.merge(unsigned)


def _answer_in(error: BaseException) -> BaseException | None:
    """The server's answer where it refused something; s3fs has words of its own around it."""
    cause = error.__cause__ or error
    return cause if isinstance(cause, botocore.exceptions.ClientError) else None


def _code(error: Any) -> str:
    """The server's own word for what it refuses."""
    return str(error.response.get("Error", {}).get("Code", ""))


def translate(error: Exception, where: str) -> Exception:
    """The exception that a user should see for a failed request."""
    if isinstance(error, (AnabranchError, FileNotFoundError)):
        return error
    if isinstance(error, botocore.exceptions.ClientError):
        return _translate_answer(error, where)
    if isinstance(error, _CREDENTIAL_ERRORS):
        return ResourceError(
            f"{where}: no usable credentials ({redact(str(error))})",
            "Set AWS_PROFILE or the AWS_… variables, or configure ~/.aws; recipes hold no credentials.",
        )
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return InputError(f"{where}: not a valid bucket or object name", "Correct the URL.")
    if isinstance(error, botocore.exceptions.FlexibleChecksumError):
        return TemporaryError(f"{where}: other bytes came than the store keeps, by its own checksum", AGAIN)
    if isinstance(error, _CONNECTION_ERRORS):
        reason = redact(str(error)) or type(error).__name__
        return TemporaryError(f"{where}: the connection failed ({reason[:300]})", AGAIN)
    return error


def _translate_answer(error: Any, where: str) -> Exception:
    """From an S3 error answer: code first, as it is more precise, then HTTP status."""
    details = error.response.get("Error", {})
    code = _code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = redact(str(details.get("Message") or ""))[:300]
    text = f"{where}: the server answered {status} {code}" + (f": {message}" if message not in ("", code) else "")
    if code == "NoSuchBucket":
        return ResourceError(text, "Create the bucket, or correct the URL.")
    if code in ("NoSuchKey", "NoSuchUpload") or status == 404:
        return FileNotFoundError(text)
    if code in _EXPIRED:
        return ExpiredCredentialsError(text, f"Renew the credentials (they may have expired). {AGAIN}")
    if code in _FULL or status == 507:
        return ResourceError(text, f"The bucket or its quota is full; make room. {AGAIN}")
    if code == "RequestTimeTooSkewed":
        return ResourceError(text, "Set this machine's clock.")
    if code in _BUSY or status == 429 or (status >= 500 and status != 501):
        return TemporaryError(text, AGAIN)
    if status in (401, 403):
        return ResourceError(text, "Check the credentials and their permission for this bucket and prefix.")
    if status in (301, 307):
        return ResourceError(text, "The bucket is in another region; set AWS_REGION or the endpoint.")
    return ResourceError(text, "The server refuses this request; check the bucket's settings and the endpoint.")
