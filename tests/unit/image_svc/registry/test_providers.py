"""Credential providers are called, matched and remembered as the kubelet does it."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bulkhead import command
from bulkhead.command import Result
from bulkhead.errors import DeadlineExceeded
from image_svc.credentials import ProviderError, Providers, configuration, matching, plugin
from image_svc.credentials.configuration import ProviderConfigError

SECRET = "pl4in-s3cret"
V1 = "credentialprovider.kubelet.k8s.io/v1"
PROVIDER = {
    "name": "ecr",
    "matchImages": ["*.dkr.ecr.*.amazonaws.com", "registry.io:8080/path"],
    "defaultCacheDuration": "10m",
    "apiVersion": V1,
    "args": ["get", "--quick"],
    "env": [{"name": "AWS_PROFILE", "value": "test"}],
}
IMAGE = "1.dkr.ecr.eu.amazonaws.com/team/app"


def config(**changes: Any) -> dict[str, Any]:
    """Return a configuration of one provider."""
    provider = {key: value for key, value in {**PROVIDER, **changes}.items() if value is not None}
    return {"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [provider]}


def response(**changes: Any) -> dict[str, Any]:
    """Return a provider's answer."""
    auth = {"*.dkr.ecr.*.amazonaws.com": {"username": "AWS", "password": SECRET}}
    base = {"apiVersion": V1, "kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "auth": auth}
    return {**base, **changes}


class Program:
    """Stands in for a provider's program."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Any = response()
        self.status, self.stderr = 0, b""
        self.calls: list[tuple[tuple[str, ...], dict[str, Any], dict[str, str]]] = []
        monkeypatch.setattr(command, "run", self.run)

    def run(self, args: list[str], *, input: bytes, env: dict[str, str], **limits: Any) -> Result:
        """Note the call and answer."""
        self.calls.append((tuple(args), json.loads(input), env))
        if isinstance(self.answer, Exception):
            raise self.answer
        out = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return Result(tuple(args), self.status, out, self.stderr)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Replace the starting of programs."""
    return Program(monkeypatch)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Providers]:
    """Return a maker of providers over a configuration file."""

    def made(tree: Any = None, clock: Callable[[], float] = lambda: 0.0) -> Providers:
        (tmp_path / "providers.yaml").write_text(yaml.safe_dump(tree or config()))
        return Providers(str(tmp_path / "providers.yaml"), "/opt/bin", clock=clock)

    return made


@pytest.mark.parametrize(
    ("pattern", "image", "fits"),
    [
        ("gcr.io", "gcr.io/a/b", True),
        ("*.azurecr.io", "x.azurecr.io/app", True),
        ("*.azurecr.io", "a.b.azurecr.io/app", False),
        ("*.io", "k8s.io/a", True),
        ("k8s.*", "k8s.gcr/a", True),
        ("app*.k8s.io", "apple.k8s.io/a", True),
        ("*.*.registry.io", "a.b.registry.io/x", True),
        ("registry.io:8080/path", "registry.io:8080/path/app", True),
        ("registry.io:8080/path", "registry.io:8080/pathology", True),
        ("registry.io:8080/path", "registry.io:8081/path/app", False),
        ("registry.io:8080/path", "registry.io:8080/other", False),
        ("registry.io", "registry.io:8080/path", False),
        ("registry.io:8080", "registry.io/path", False),
        ("[::1]:5000", "[::1]:5000/app", True),
        ("docker.io", "docker.io/library/busybox", True),
    ],
)
def test_patterns(pattern: str, image: str, fits: bool) -> None:
    """Domain parts match one by one, the port exactly, the path as a prefix (kubelet config v1, matchImages)."""
    assert matching.parse(pattern).matches(image) is fits


@given(st.text(max_size=40), st.text(alphabet="ab.*[]^-:/0", max_size=40))
def test_any_pattern_is_taken_or_refused(text: str, image: str) -> None:
    """Whatever a pattern and a name look like, they match or not."""
    try:
        found = matching.parse(text)
    except ValueError:
        return
    assert found.matches(image) in (True, False)


def test_call(program: Program, make: Callable[..., Providers]) -> None:
    """The program is called with its arguments and variables, the image stands in the request, without a tag."""
    (found,) = make().find(IMAGE)

    assert (found.username, found.password, found.provider) == ("AWS", SECRET, "ecr")
    ((args, request, env),) = program.calls
    assert args == ("/opt/bin/ecr", "get", "--quick")
    assert request == {"apiVersion": V1, "kind": "CredentialProviderRequest", "image": IMAGE}
    assert env["AWS_PROFILE"] == "test"
    assert "PATH" in env


def test_other_images_call_nobody(program: Program, make: Callable[..., Providers]) -> None:
    """A program is asked for the images it is configured for and for no others."""
    assert make().find("quay.io/app") == []
    assert Providers("", "").find(IMAGE) == []
    assert program.calls == []


@pytest.mark.parametrize(
    ("kind", "duration", "images", "calls"),
    [
        ("Image", "1h", [IMAGE, IMAGE], 1),
        ("Image", "1h", [IMAGE, f"{IMAGE}2"], 2),
        ("Registry", "1h", [IMAGE, f"{IMAGE}2"], 1),
        ("Registry", "1h", [IMAGE, IMAGE.replace("1.", "2.")], 2),
        ("Global", "1h", [IMAGE, IMAGE.replace("1.", "2.")], 1),
        ("Global", "0s", [IMAGE, IMAGE], 2),
        ("Global", None, [IMAGE, IMAGE], 1),
    ],
)
def test_cache_keys(
    program: Program, make: Callable[..., Providers], kind: str, duration: str | None, images: list[str], calls: int
) -> None:
    """An answer is remembered for the image, the registry or everything, as it says itself."""
    program.answer = response(cacheKeyType=kind, cacheDuration=duration)
    providers = make()

    assert all(providers.find(image) for image in images)
    assert len(program.calls) == calls


@pytest.mark.parametrize(("duration", "good_for"), [("90s", 90.0), (None, 600.0)])
def test_cache_ends(program: Program, make: Callable[..., Providers], duration: str | None, good_for: float) -> None:
    """An answer is remembered for its own duration, else for the configured one."""
    program.answer = response(cacheDuration=duration)
    now = [0.0]
    providers = make(clock=lambda: now[0])

    for moment, calls in ((0.0, 1), (good_for - 1, 1), (good_for + 1, 2)):
        now[0] = moment
        assert providers.find(IMAGE)
        assert len(program.calls) == calls


def test_the_longer_pattern_first(program: Program, make: Callable[..., Providers]) -> None:
    """Of several patterns that fit, the one that says more comes first."""
    one, two = ({"username": name, "password": "p"} for name in ("one", "two"))
    program.answer = response(auth={"*.dkr.ecr.eu.amazonaws.com": one, "1.dkr.ecr.eu.amazonaws.com/team": two})

    assert [found.username for found in make().find(IMAGE)] == ["two", "one"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "not JSON"),
        (SECRET.encode(), "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "nested|not JSON"),
        ([SECRET], "not an object"),
        (response(kind="Secret"), "kind"),
        (response(apiVersion="credentialprovider.kubelet.k8s.io/v1beta1"), "apiVersion"),
        (response(cacheKeyType="Never"), "cacheKeyType"),
        (response(cacheKeyType=[]), "cacheKeyType"),
        (response(cacheDuration="soon"), "cacheDuration"),
        (response(cacheDuration=5), "cacheDuration"),
        (response(auth=[SECRET]), "auth"),
        (response(auth={"gcr.io": SECRET}), "auth"),
        (response(auth={"gcr.io": {"username": 1, "password": SECRET}}), "auth"),
        (response(auth={"gcr.io": {"username": "\ud800", "password": SECRET}}), "half a character"),
        (response(auth={"a b": {"username": "u", "password": SECRET}}), "domain"),
        (DeadlineExceeded("/opt/bin/ecr did not finish within 60 s and was killed"), "60 s"),
        (OSError(8, "Exec format error"), "Exec format"),
    ],
)
def test_answers_that_are_none(program: Program, make: Callable[..., Providers], answer: Any, why: str) -> None:
    """A wrong answer is an error that names the provider and the field, and repeats nothing."""
    program.answer = answer

    with pytest.raises(ProviderError, match=why) as caught:
        make().find(IMAGE)
    assert "credential provider ecr" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_failed_program(program: Program, make: Callable[..., Providers], caplog: pytest.LogCaptureFixture) -> None:
    """An exit status is told with standard error; standard output, which may hold a secret, is not."""
    program.status, program.stderr = 3, b"no role\n attached"

    with pytest.raises(ProviderError, match="exit status 3: no role  attached"):
        make().find(IMAGE)
    assert SECRET not in caplog.text


def test_the_next_provider(program: Program, make: Callable[..., Providers]) -> None:
    """Every provider that matches is asked, in the file's order."""
    tree = config()
    tree["providers"].append({**PROVIDER, "name": "second"})
    program.answer = response(auth=None)

    assert make(tree).find(IMAGE) == []
    assert [args[0] for args, _, _ in program.calls] == ["/opt/bin/ecr", "/opt/bin/second"]


def test_file_is_read_again(program: Program, make: Callable[..., Providers], tmp_path: Path) -> None:
    """A changed configuration counts at once, and what was remembered under the old one does not."""
    providers = make()
    providers.find(IMAGE)
    (tmp_path / "providers.yaml").write_text(json.dumps(config(name="other")))

    assert providers.find(IMAGE)
    assert program.calls[-1][0][0] == "/opt/bin/other"


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        ([], "expected a mapping"),
        (config() | {"kind": "X"}, "kind is 'X'"),
        (config() | {"apiVersion": 1}, "apiVersion is '1'"),
        (config() | {"more": 1}, "unknown field 'more'"),
        (config() | {"providers": []}, "at least one"),
        (config(name="a/b"), r"providers\[0\]\.name"),
        (config(name=".."), r"providers\[0\]\.name"),
        (config(matchImages=[]), r"providers\[0\]\.matchImages"),
        (config(matchImages=["a b"]), "'a b'"),
        (config(matchImages="gcr.io"), "expected a list"),
        (config(defaultCacheDuration=None), r"providers\[0\]\.defaultCacheDuration"),
        (config(defaultCacheDuration="-1s"), "duration"),
        (config(apiVersion="v1"), "expected credentialprovider"),
        (config(args=[1]), r"args\[0\]"),
        (config(env=[{"name": "A=B", "value": ""}]), r"env\[0\]\.name"),
        (config(env=[{"name": "A", "value": 5}]), "hidden"),
        (config(tokenAttributes={"serviceAccountTokenAudience": "x"}), "kubelet's to give"),
        (config(extra=1), "unknown field 'extra'"),
    ],
)
def test_wrong_configuration(make: Callable[..., Providers], tree: Any, why: str) -> None:
    """A wrong file is an error that names file and field."""
    providers = make(config() if tree == [] else tree)
    if tree == []:
        assert providers._config is not None
        providers._config.write_text("[]")

    with pytest.raises(ProviderConfigError, match=why) as caught:
        providers.matching(IMAGE)
    assert "providers.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: b\nc: [", r"providers\.yaml:2: "),
        ("\ta: b", r"providers\.yaml:1: "),
        ("[" * 5000, "RecursionError"),
        ("a: 2001-99-99", "ValueError"),
        ("!!python/object:os.system x", r"providers\.yaml:1: "),
    ],
)
def test_broken_file(tmp_path: Path, text: str, why: str) -> None:
    """What is not YAML is told with its line."""
    path = tmp_path / "providers.yaml"
    path.write_text(text)

    with pytest.raises(ProviderConfigError, match=why):
        configuration.load(path)


def test_missing_file(tmp_path: Path) -> None:
    """A configured file that is not there fails, since credentials would be missing without a word."""
    with pytest.raises(ProviderConfigError, match=r"none\.yaml: No such file"):
        Providers(str(tmp_path / "none.yaml"), "/opt/bin").find(IMAGE)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*response(), "cacheDuration", "x"]), _JSON), st.booleans())
def test_any_answer_is_read_or_refused(changes: dict[str, Any], sound: bool) -> None:
    """Whatever JSON a program writes is an answer or one kind of error."""
    try:
        plugin.read_answer(response(**changes) if sound else changes, V1)
    except ValueError:
        return


@given(st.dictionaries(st.sampled_from([*PROVIDER, "tokenAttributes", "x"]), _JSON))
def test_any_configuration_is_read_or_refused(changes: dict[str, Any]) -> None:
    """Whatever a configuration holds is providers or one kind of error."""
    try:
        assert configuration.read(config(**changes))
    except ValueError:
        return


def test_a_provider_that_hangs_makes_no_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pulls wait for it, each ends within two of its time-outs."""
    timeout = 0.5

    def hang(args: Sequence[str], **rest: Any) -> Result:
        time.sleep(rest["timeout"])
        raise DeadlineExceeded(f"{args[0]} did not finish")

    monkeypatch.setattr(command, "run", hang)
    (tmp_path / "providers.yaml").write_text(yaml.safe_dump(config()))
    providers = Providers(str(tmp_path / "providers.yaml"), "/opt/bin", timeout=timeout)
    ended: list[float] = []

    def pull(number: int) -> None:
        with pytest.raises(ProviderError):
            providers.find(f"{IMAGE}{number}")
        ended.append(time.monotonic())

    began = time.monotonic()
    threads = [threading.Thread(target=pull, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 20
    assert max(ended) - began < 8 * timeout
