"""What the two S3 servers have in common: addresses, keys, fresh buckets."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from engines._engine import Engine


class S3Server(Engine):
    """A server that speaks S3."""

    access_key: ClassVar[str]
    secret_key: ClassVar[str]
    region: ClassVar[str] = "us-east-1"

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """Return the variables with which boto3, MLflow and keynet find this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "MLFLOW_S3_ENDPOINT_URL": self.url,
        }

    def bucket(self) -> str:
        """Create a bucket and return its name."""
        name = f"bucket-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def client(self) -> Any:
        """Return a bare boto3 client of this server, to look behind keynet's back."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5}),
        )

    def _answers(self) -> bool:
        """Tell whether a signed request is answered."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True
