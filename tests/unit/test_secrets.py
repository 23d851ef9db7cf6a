"""Keys are found or missed in plain words, tokens rest encrypted, and neither is ever seen."""

import html
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from etl.config.settings import VENDOR_URL, Source
from etl.db.database import connect
from etl.errors import ConfigError
from etl.secrets.keys import api_key
from etl.secrets.masking import (
    API_KEY_ENV,
    Secret,
    forget_secrets,
    hide,
    mask,
    mask_body,
)
from etl.secrets.vault import TokenVault

KEY = 'k3y/with+signs="of=1'
PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)


@pytest.fixture(autouse=True)
def nothing_hidden() -> None:
    """Each test begins as a new process does."""
    forget_secrets()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "api.key"
    path.write_text("from-file\n")
    return path


@pytest.fixture
def no_root() -> Iterator[None]:
    """Go without the rights of root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(user)


# API keys


def source(key_file: Path | None = None, key_env: str | None = API_KEY_ENV) -> Source:
    return Source(VENDOR_URL, key_env, str(key_file) if key_file else None)


def complaint(name: str, source: Source) -> str:
    with pytest.raises(ConfigError) as caught:
        api_key(name, source)
    return str(caught.value)


def test_the_key_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_ENV, " from-env\n")
    assert api_key("default", source()).reveal() == "from-env"


def test_the_key_is_taken_from_a_file(key_file: Path) -> None:
    assert api_key("default", source(key_file)).reveal() == "from-file"


def test_the_environment_wins_over_the_file(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_ENV, "from-env")
    assert api_key("default", source(key_file)).reveal() == "from-env"


def test_a_blank_variable_leaves_the_file_to_speak(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_ENV, "  ")
    assert api_key("default", source(key_file)).reveal() == "from-file"


def test_a_source_has_a_variable_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_ENV, "not this one")
    monkeypatch.setenv("EU_KEY", "from-eu")
    assert api_key("eu", source(key_env="EU_KEY")).reveal() == "from-eu"


def test_an_editors_byte_order_mark_is_not_part_of_the_key(key_file: Path) -> None:
    key_file.write_text("\ufefffrom-file\r\n")
    assert api_key("default", source(key_file)).reveal() == "from-file"


def test_no_key_at_all_is_told_with_both_remedies() -> None:
    assert complaint("default", source()) == (
        "no API key: set APPLITOOLS_API_KEY, or api.key_file in config.toml"
    )


def test_a_source_without_its_variable_is_told() -> None:
    assert complaint("eu", source(key_env="EU_KEY")) == "no API key for source eu: set EU_KEY"


@pytest.mark.parametrize("name", ["default", "eu"])
def test_a_blank_key_file_is_told(name: str, key_file: Path) -> None:
    key_file.write_text(" \n")
    assert complaint(name, source(key_file)) == (
        f"no API key for source {name}: write it into {key_file}"
    )


def test_a_missing_key_file_is_told(tmp_path: Path) -> None:
    assert complaint("eu", source(tmp_path / "none")) == (
        f"key_file of source eu: the file it names in {tmp_path} cannot be read:"
        " No such file or directory"
    )


def test_an_unreadable_key_file_is_told(key_file: Path, request: pytest.FixtureRequest) -> None:
    key_file.chmod(0)
    request.getfixturevalue("no_root")
    assert complaint("eu", source(key_file)) == (
        f"key_file of source eu: {key_file} cannot be read: Permission denied"
    )


def test_a_key_file_that_is_no_text_is_told(key_file: Path) -> None:
    key_file.write_bytes(b"\xff\xfe\x00")
    assert (
        complaint("eu", source(key_file)) == f"key_file of source eu: {key_file} is not a text file"
    )


@pytest.mark.parametrize("key", ["k3y\nk3y", "k3yö", "k3y\x00", "k3y\x1b[0m"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(key: str, key_file: Path) -> None:
    key_file.write_text(key)
    text = complaint("eu", source(key_file))
    assert text == "the API key of source eu has characters that no key has; check it"


def test_a_key_that_was_found_is_masked_from_then_on(key_file: Path) -> None:
    api_key("default", source(key_file))
    assert mask("the key is from-file!") == "the key is ***!"


# Masks


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(KEY)
    assert f"{secret} {secret!r} {[secret]}" == "Secret(***) Secret(***) [Secret(***)]"


@pytest.mark.parametrize(
    "shown",
    [
        KEY,
        quote(KEY, safe=""),
        quote_plus(KEY),
        json.dumps(KEY)[1:-1],
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
        unquote(quote_plus(KEY)),
        quote(quote(KEY, safe="")).lower(),
        html.escape(KEY),
        json.dumps(json.dumps(KEY))[3:-3],
    ],
)
def test_a_hidden_secret_is_masked_in_every_spelling(shown: str) -> None:
    hide(KEY)
    assert mask(f"<{shown}>") == "<***>"


@given(PRINTABLE.filter(lambda secret: "*" not in secret))
def test_nothing_of_a_hidden_secret_is_left(secret: str) -> None:
    forget_secrets()
    hide(secret)
    for shown in (secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]):
        assert mask(shown) == "***"


def test_a_secret_that_begins_another_does_not_uncover_it() -> None:
    hide("abcd")
    hide("abcdefgh")
    assert mask("abcdefgh") == "***"
    assert mask_body(b"abcdefgh", [Secret("abcd"), Secret("abcdefgh")]) == b"***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("GET /r?apiKey=k3y&read_token=t0k HTTP/1.1", "GET /r?apiKey=***&read_token=*** HTTP/1.1"),
        ("'/r?APIKEY=k3y'", "'/r?APIKEY=***'"),
        ("postgresql://u@h/d?password=k3y", "postgresql://u@h/d?password=***"),
        ('{"url": "/r?apiKey=k3y"}', '{"url": "/r?apiKey=***"}'),
        ('"{\\"url\\": \\"/r?apiKey=k3y\\"}"', '"{\\"url\\": \\"/r?apiKey=***\\"}"'),
        ("nothing to see", "nothing to see"),
    ],
)
def test_secret_parameters_of_a_url_are_masked_unasked(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at postgresql://ann:Pw@x/y:z@db:5432/a, no", "at postgresql://ann:***@db:5432/a, no"),
        ("['http://:pw@proxy:3128']", "['http://:***@proxy:3128']"),
        ('{"a": "x://u:p@h", "b": "c@d"}', '{"a": "x://u:***@h", "b": "c@d"}'),
        ("https://h:8080/a and mail@h", "https://h:8080/a and mail@h"),
        ("postgresql://ann@db:5432/a", "postgresql://ann@db:5432/a"),
    ],
)
def test_the_password_of_a_url_is_masked_unasked(text: str, masked: str) -> None:
    assert mask(text) == masked


MESSAGE = "results.db: the archive of app 2026 was tested; ingest makes one, for ann at db-server"


@pytest.mark.parametrize(
    "password",
    ["a", "e", "test", "archive", "2026", "password", "results.db", "20261128", "........", "ann"],
)
def test_a_short_or_common_password_blots_out_no_words(password: str) -> None:
    connect(f"postgresql://ann:{quote(password, safe='')}@db-server/results.db")
    assert mask(MESSAGE) == MESSAGE
    assert mask(f"postgresql://ann:{password}@db-server/a") == "postgresql://ann:***@db-server/a"
    assert mask(f"sslmode=require password={password}") == "sslmode=require password=***"


@pytest.mark.parametrize(
    "password", ["s3cr3t-w0rd", "Pw@x:y/z?", "correcthorsebattery", "ann-2026-x", "k3y+k3y="]
)
def test_a_password_that_is_no_word_is_masked_wherever_it_stands(password: str) -> None:
    connect(f"postgresql://ann:{quote(password, safe='')}@db-server/a")
    assert mask(f"not <{password}>, nor {quote(password)}!") == "not <***>, nor ***!"
    forget_secrets()
    connect(f"postgresql://db-server/a?password={quote(password, safe='')}")
    assert mask(f"not <{password}>") == "not <***>"


def test_an_empty_secret_masks_nothing() -> None:
    hide("")
    assert mask("text") == "text"
    assert mask_body(b"body", [Secret("")]) == b"body"


def test_a_body_loses_every_echo_and_nothing_else() -> None:
    echoes = [KEY, quote(KEY, safe=""), quote_plus(KEY), json.dumps(KEY)[1:-1]]
    body = "ü" + "|".join(echoes)
    assert mask_body(body.encode(), [Secret(KEY)]).decode() == "ü***|***|***|***"


# The vault


@pytest.fixture
def vault_file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folders" / "token.key"


def write_keys(path: Path, *lines: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(b"\n".join(lines) + b"\n")


def trouble(vault: TokenVault, kept: str) -> str:
    with pytest.raises(ConfigError) as caught:
        vault.decrypt(kept)
    return str(caught.value)


@given(st.text())
def test_a_token_comes_back_as_it_went_in(token: str) -> None:
    vault = TokenVault("token.key")
    kept = vault.encrypt(Secret(token))
    assert TokenVault("token.key").decrypt(kept).reveal() == token
    assert len(token) < 4 or token not in kept


def test_the_first_token_makes_a_key_for_its_owner_alone(vault_file: Path) -> None:
    TokenVault(str(vault_file)).encrypt(Secret("t0ken"))
    assert vault_file.stat().st_mode & 0o777 == 0o600
    assert vault_file.parent.stat().st_mode & 0o777 == 0o700
    assert [*vault_file.parent.iterdir()] == [vault_file]


def test_a_vault_that_keeps_nothing_makes_no_key(vault_file: Path) -> None:
    TokenVault(str(vault_file))
    assert not vault_file.exists()


def test_the_first_key_encrypts_and_all_decrypt(vault_file: Path) -> None:
    old, new = Fernet.generate_key(), Fernet.generate_key()
    write_keys(vault_file, old)
    kept_before = TokenVault(str(vault_file)).encrypt(Secret("before"))
    write_keys(vault_file, new, old)
    rotated = TokenVault(str(vault_file))
    assert rotated.decrypt(kept_before).reveal() == "before"
    assert Fernet(new).decrypt(rotated.encrypt(Secret("after")).encode()) == b"after"


def test_another_key_is_told(vault_file: Path) -> None:
    kept = TokenVault(str(vault_file)).encrypt(Secret("t0ken"))
    write_keys(vault_file, Fernet.generate_key())
    assert trouble(TokenVault(str(vault_file)), kept) == (
        f"its read token cannot be decrypted: {vault_file} has another key than the one it was"
        " tracked with; bring that key back, or track the run again"
    )


def test_a_damaged_token_is_told_like_another_key(vault_file: Path) -> None:
    write_keys(vault_file, Fernet.generate_key())
    assert trouble(TokenVault(str(vault_file)), "dämaged").startswith("its read token cannot be")


def test_a_lost_key_is_told_and_not_replaced(vault_file: Path) -> None:
    kept = TokenVault(str(vault_file)).encrypt(Secret("t0ken"))
    vault_file.unlink()
    assert trouble(TokenVault(str(vault_file)), kept) == (
        f"security.token_key_file: {vault_file} cannot be read: No such file or directory"
    )
    assert not vault_file.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"n0key", b"\xff\xfe", Fernet.generate_key()[:-4]],
    ids=["empty", "short", "not text", "cut off"],
)
def test_a_key_file_without_a_key_is_told_and_not_shown(content: bytes, vault_file: Path) -> None:
    write_keys(vault_file, content)
    assert trouble(TokenVault(str(vault_file)), "x") == (
        f"security.token_key_file: {vault_file} has no valid key; bring the right file back"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_can_read_is_refused(mode: int, vault_file: Path) -> None:
    write_keys(vault_file, Fernet.generate_key())
    vault_file.chmod(mode)
    assert trouble(TokenVault(str(vault_file)), "x") == (
        f"security.token_key_file: {vault_file} can be read by others; run `chmod 600 {vault_file}`"
    )


def test_a_key_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        TokenVault(f"{tmp_path}/file/token.key").encrypt(Secret("t0ken"))
    assert str(caught.value) == (
        f"security.token_key_file: {tmp_path}/file/token.key cannot be written: File exists"
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda vault: vault.encrypt(Secret("t0ken")),
        lambda vault: vault.decrypt("stored"),
        TokenVault.has_key_file,
    ],
)
def test_a_user_without_a_home_is_told_when_a_token_is_there(
    use: Callable[[TokenVault], object],
) -> None:
    vault = TokenVault("~nobody-here/token.key")
    with pytest.raises(ConfigError) as caught:
        use(vault)
    assert str(caught.value) == (
        "security.token_key_file: ~nobody-here/token.key is in a home folder, and this user has"
        " none; set HOME, or give another path"
    )
