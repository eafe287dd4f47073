# ruff: noqa: INP001, T201 - a program of one file, run in a container; what it prints is its log
"""
Make buckets where there are none, on the S3 that MLFLOW_S3_ENDPOINT_URL and AWS_* name.

    python3 buckets.py keynet-packages keynet-serving/models

A prefix after the bucket gets an object of its own, `.keep`: Triton ends at once when the place it is to read models
from is not there, and in S3 a place is there when something is in it. Buckets that are there stay as they are.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from botocore.exceptions import ClientError


def main(places: list[str]) -> int:
    """Make every place in turn; return the exit code."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bounded = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 5})
    region = os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name=region, config=bounded)
    for place in places:
        bucket, _, prefix = place.partition("/")
        try:
            told = "made" if make_bucket(s3, bucket, region) else "there already"
            if prefix:
                s3.put_object(Bucket=bucket, Key=f"{prefix.strip('/')}/.keep", Body=b"")
        except (BotoCoreError, ClientError) as error:
            print(f"error: {place}: {error}", file=sys.stderr)
            return 1
        print(f"{place}: {told}")
    return 0


def make_bucket(s3: Any, bucket: str, region: str) -> bool:
    """Make a bucket; return whether it was not there before."""
    from botocore.exceptions import ClientError

    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if _status(error) != 404:
            raise
    else:
        return False
    # AWS wants the region named, except for the first one, which it refuses to be named.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.create_bucket(Bucket=bucket, **where)
    except ClientError as error:
        if _status(error) != 409:
            raise
        s3.head_bucket(Bucket=bucket)  # another made it meanwhile; one of a stranger's is refused here
        return False
    return True


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
