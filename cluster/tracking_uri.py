"""Where a tracker lives: is the URI usable, does it answer, and how to print it without its secrets.

Nothing here imports MLflow: its import costs more than a second, and its own answer to a server
that is down is minutes of retries. The checks are a socket, one HTTP request or one SQLite pragma.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import socket
import sqlite3
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from cluster.errors import BadConfig, Unreachable

REMEDY = "start the server, correct tracking=, or leave it out to track into SQLite below the store"
SQL_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SQL_DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}


def redact(text: str) -> str:
    """Return `text` with the user part of every URI, and every token-like query value, replaced by `***`."""
    text = re.sub(r"(\w[\w+.-]*://)[^/\s@]*@", r"\1***@", text)
    return re.sub(r"(?i)\b((?:api_?key|token|password|secret|sig)=)[^&\s]+", r"\1***", text)


def sqlite_path(uri: str) -> Path | None:
    """The file behind a `sqlite:///…` URI (dialect suffixes and queries allowed), else None."""
    if not re.match(r"sqlite(\+\w+)?:///", uri):
        return None
    return Path(uri.split(":///", 1)[1].split("?", 1)[0])


def default_artifact_root(uri: str) -> str | None:
    """Where run artifacts go unless the caller says: beside the SQLite file; a server decides for itself."""
    path = sqlite_path(uri)
    return str(path.resolve().parent / "mlflow-artifacts") if path else None


def check(uri: str, timeout: float = 3.0) -> None:
    """Raise unless a tracker can be used at `uri`; answers within `timeout` + 1.5 seconds.

    Raises:
        BadConfig: the URI's form cannot work (unknown scheme, no path, a missing database driver).
        Unreachable: nothing answers there, it refuses the credentials, or it is not MLflow.
    """
    scheme = uri.split(":", 1)[0].split("+", 1)[0].lower() if "://" in uri else ""
    if scheme in ("http", "https"):
        _limited(timeout + 1.5, uri, _check_http, uri, timeout)
    elif scheme == "sqlite":
        _check_sqlite(uri)
    elif scheme in SQL_PORTS:
        _limited(timeout + 1.5, uri, _check_sql, uri, scheme, timeout)
    elif not uri.startswith("databricks"):
        raise BadConfig(
            f"tracking={redact(uri)!r} is not a tracking URI",
            "expected http(s)://host:port of an MLflow server, sqlite:////absolute/path.db or a database URI; "
            "MLflow has no file store any more",
        )


def _limited(seconds: float, uri: str, call: Callable[..., None], *arguments: Any) -> None:
    """Call on a thread of its own: looking up a host's name has no time limit in the standard library."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            call(*arguments)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if thread.is_alive():
        raise Unreachable(f"the tracking server {redact(uri)} gave no answer in {seconds:.0f} s", REMEDY)


def _check_http(uri: str, timeout: float) -> None:
    shown, parts = redact(uri), urlsplit(uri)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise BadConfig(f"tracking={shown!r} is not a URL: {error}", "expected http://host:port") from None
    if not host:
        raise BadConfig(f"tracking={shown!r} names no host", "expected http://host:port")
    proxied = urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host)
    if not proxied:
        _connect(host, port, shown, timeout / 2)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    request = urllib.request.Request(f"{bare}/api/2.0/mlflow/experiments/search?max_results=1")
    if authorization := _authorization(parts.username, parts.password):
        request.add_header("Authorization", authorization)
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=context) as answer:
            json.loads(answer.read(1_000_000) or b"{}")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise Unreachable(
                f"the tracking server {shown} refused access (HTTP {error.code})",
                "set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
            ) from None
        if error.code >= 500:
            raise Unreachable(f"the tracking server {shown} is failing (HTTP {error.code})", REMEDY) from None
        raise Unreachable(
            f"{shown} answers, but is not an MLflow server (HTTP {error.code} for its API)",
            "check the port and the path prefix of tracking=",
        ) from None
    except ValueError:
        raise Unreachable(f"{shown} answers, but is not an MLflow server", "check the port of tracking=") from None
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise Unreachable(f"the tracking server {shown} does not answer: {reason}", REMEDY) from None


def _authorization(user: str | None, password: str | None) -> str:
    """The header MLflow's client would send: credentials of the URI, else those of its variables."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return f"Bearer {token}"
    user = unquote(user) if user else os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(password) if password else os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return ""


def _connect(host: str, port: int, shown: str, timeout: float) -> None:
    try:
        socket.create_connection((host, port), timeout=timeout).close()
    except OSError as error:
        raise Unreachable(f"no tracking server at {shown}: {error.strerror or error}", REMEDY) from None


def _check_sql(uri: str, scheme: str, timeout: float) -> None:
    shown, parts = redact(uri), urlsplit(uri)
    driver = parts.scheme.partition("+")[2] or SQL_DRIVERS[scheme]
    if importlib.util.find_spec({"mysqldb": "MySQLdb"}.get(driver, driver)) is None:
        raise BadConfig(f"tracking={shown!r} needs the Python package {driver}", f"pip install {driver}")
    if parts.hostname:
        _connect(parts.hostname, parts.port or SQL_PORTS[scheme], shown, timeout)


def _check_sqlite(uri: str) -> None:
    path = sqlite_path(uri)
    if path is None or not path.name:
        raise BadConfig(f"tracking={uri!r} names no file", "expected sqlite:////absolute/path.db (four slashes)")
    if path.is_dir():
        raise BadConfig(f"tracking database {path} is a folder", f"use sqlite:///{path.resolve()}/mlflow.db")
    if not path.exists():
        parent = next(folder for folder in path.resolve().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise Unreachable(
                f"the tracking database {path} cannot be made: {parent} is not a writable folder",
                "choose another place with tracking=sqlite:////absolute/path.db",
            )
        return
    try:
        connection = sqlite3.connect(f"file:{path.resolve()}?mode=rw", uri=True, timeout=2)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        if "locked" in str(error):
            return  # another program writes just now; that passes
        raise Unreachable(
            f"the tracking database {path} cannot be opened: {error}",
            "move the file away, or choose another with tracking=sqlite:////absolute/path.db",
        ) from None
