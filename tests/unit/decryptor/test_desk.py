"""What callers get: authorisation, the audit's line, what is remembered and for how long, and the policy of keys."""

import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bulkhead.config.model import KeyRule
from bulkhead.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, PermissionDenied
from bulkhead.proto import keys_pb2
from decryptor import audit, options, recognise, wrap
from decryptor.deadline import Deadline
from decryptor.desk import Desk
from decryptor.files import KeyFile
from decryptor.keyring import Keyring
from decryptor.options import Private
from decryptor.policy import Policy
from decryptor.schemes.provider import Provider
from decryptor.service import Keys
from decryptor.tools import Tools
from decryptor.unwrap import Refused

DIGEST = "sha256:" + "ab" * 32
ENCRYPTED = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
TOOLS = Tools({}, None)
PRIVATE = Private(b"k" * 32, b"n" * 16, "")


class Bench:
    """A desk whose key files the test changes, and a layer for the RSA key of the fixtures."""

    def __init__(self, formats: dict[str, bytes], **options_: Any) -> None:
        self.formats, self.names = formats, ["pkcs8.pem"]
        self.desk = Desk(self.load, tools=TOOLS, **options_)

    def load(self) -> Keyring:
        return Keyring([KeyFile(name, self.formats[name]) for name in self.names])

    def layer(self, scheme: str = "jwe", key: str = "public.pem") -> keys_pb2.Layer:
        payload = Private(b"k" * 32, b"n" * 16, DIGEST).to_json()
        recipient = keys_pb2.Recipient(scheme=scheme, key=self.formats[key])
        annotations = wrap.annotations(payload, [recipient], TOOLS, Deadline(60, "wrapping"))
        annotations[options.PUBLIC] = options.to_annotation(b"m" * 32)
        return keys_pb2.Layer(digest=DIGEST, media_type=ENCRYPTED, annotations=annotations)

    def check(self, *layers: keys_pb2.Layer, **use: Any) -> list[keys_pb2.Opened]:
        return self.desk.check(keys_pb2.Use(**use), layers, 10)


@pytest.fixture
def bench(formats: dict[str, bytes]) -> Bench:
    return Bench(formats)


def fingerprint(formats: dict[str, bytes]) -> str:
    return recognise.recognise(formats["pkcs8.pem"]).fingerprint


def test_plain_layers_pass(formats: dict[str, bytes]) -> None:
    """Check of an image without encrypted layers succeeds without any key."""
    bench = Bench(formats)
    bench.names = []
    request = keys_pb2.CheckRequest(layers=[keys_pb2.Layer(media_type="application/vnd.oci.image.layer.v1.tar")])

    assert Keys(bench.desk).Check(request, Endless()) == keys_pb2.CheckResponse()  # type: ignore[arg-type]


class Endless:
    """A call without a deadline."""

    def time_remaining(self) -> None:
        return None


def test_every_layer_is_unwrapped(bench: Bench, formats: dict[str, bytes]) -> None:
    """Each encrypted layer is named with the key that opens it; one that none opens refuses the image."""
    opened = bench.check(bench.layer(), keys_pb2.Layer(media_type="x.tar"), bench.layer())

    assert [(each.scheme, each.fingerprint) for each in opened] == [("jwe", fingerprint(formats))] * 2
    strange = bench.layer("pkcs7", "cert.pem")
    with pytest.raises(Refused, match="pkcs7 needs private-key and certificate"):
        bench.check(bench.layer(), strange)


def test_one_line_for_each_key_asked_for(
    bench: Bench, formats: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Opened or refused, there is one line with image, pod, layer, scheme, fingerprint, verdict and duration."""
    before = audit.UNWRAPS.labels("jwe", "refused")._value.get()
    with caplog.at_level(logging.INFO, "decryptor.audit"):
        bench.check(bench.layer(), image="registry/a:1", pod="default/p")
        bench.names = ["ec.jwk"]
        bench.desk.reload()
        with pytest.raises(Refused):
            bench.check(bench.layer(), image="registry/a:1", pod="default/p")
    good, bad = [vars(record) for record in caplog.records if record.name == "decryptor.audit"]

    assert (good["image"], good["pod"], good["layer"]) == ("registry/a:1", "default/p", DIGEST)
    assert (good["scheme"], good["verdict"], good["fingerprint"]) == ("jwe", "opened", fingerprint(formats))
    assert float(good["duration"]) > 0
    assert bad["verdict"] == "refused"
    assert bad["fingerprint"] == recognise.recognise(formats["ec.jwk"]).fingerprint
    assert "not wrapped for this key" in bad["reason"]
    assert audit.UNWRAPS.labels("jwe", "refused")._value.get() == before + 1


def test_a_key_taken_away_counts_at_once(formats: dict[str, bytes]) -> None:
    """What is remembered of a key is forgotten when the keys are read anew."""
    bench = Bench(formats, remember=1000)
    layer = bench.layer()
    bench.check(layer)
    bench.names = []
    assert bench.check(layer)
    bench.desk.reload()
    with pytest.raises(Refused, match="missing private key"):
        bench.check(layer)


def test_a_verdict_is_remembered_as_long_as_told(
    formats: dict[str, bytes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time a second check unwraps nothing, and says so; after it, and with 0, it does."""
    now = [100.0]
    monkeypatch.setattr("decryptor.cache.time.monotonic", lambda: now[0])
    bench, forgetful = Bench(formats, remember=10), Bench(formats, remember=0)
    layer = bench.layer()
    with caplog.at_level(logging.INFO, "decryptor.audit"):
        for at in (100, 109, 111):
            now[0] = at
            bench.check(layer)
        forgetful.check(layer)
        forgetful.check(layer)

    assert [vars(record)["verdict"] for record in caplog.records] == [
        "opened", "remembered", "opened", "opened", "opened",
    ]  # fmt: skip


def test_an_answer_found_while_keys_change_is_not_remembered(
    formats: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys taken away between unwrapping and remembering leave nothing behind."""
    bench = Bench(formats, remember=1000)
    layer, original = bench.layer(), bench.desk.open

    def slow(*arguments: Any) -> Any:
        found = original(*arguments)
        bench.names = []
        bench.desk.reload()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(bench.desk, "open", slow)
        bench.check(layer)
    with pytest.raises(Refused):
        bench.check(layer)


def test_decryption_can_be_switched_off(formats: dict[str, bytes]) -> None:
    """With an empty key_model the refusal says that decryption is off."""
    bench = Bench(formats, enabled=False)
    with pytest.raises(FailedPrecondition, match="key_model"):
        bench.check(bench.layer())


@pytest.mark.parametrize("written", ["AB12CD", "ab:12:CD", "sha256:ab12cd", "0xAB12CD", "AB12 CD"])
def test_fingerprints_as_programs_write_them(written: str) -> None:
    """A rule's fingerprint means the same key in OpenSSL's, GnuPG's and our own spelling."""
    policy = Policy([KeyRule(namespaces=("payments",), keys=(written,))])

    assert policy.withheld(keys_pb2.Use(namespace="web")) == {"ab12cd"}


@pytest.mark.parametrize(
    "written",
    [
        "pkcs11:object=node;token=My%20HSM",
        "pkcs11:token=My%20HSM;object=node",
        "PKCS11:token=My%20HSM;object=n%6fde",
        "pkcs11:token=My%20HSM;object=node?module-name=softhsm2&pin-value=1234",
        " pkcs11:token=My%20HSM;object=node\n",
    ],
)
def test_a_tokens_key_as_its_file_writes_it(written: str) -> None:
    """A rule may have the URI of the key file, or as it is shown: a name that met no key would leave the key to all."""
    policy = Policy([KeyRule(namespaces=("payments",), keys=(written,))])

    assert policy.withheld(keys_pb2.Use(namespace="web")) == {"pkcs11:object=node;token=My%20HSM"}


def test_a_tokens_key_that_cannot_be_named_so() -> None:
    """A rule with a URI that no key can have is refused rather than passed over, and a PIN in it is not told."""
    with pytest.raises(InvalidArgument, match=r"bulkhead\.key_policy: .*attributes") as caught:
        Policy([KeyRule(namespaces=("payments",), keys=("pkcs11:node?pin-value=1234",))])
    assert "1234" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "named"),
    [("provider.vault", "provider:vault"), ("pkcs11", "pkcs11:object=node;token=My%20HSM")],
)
def test_the_policy_withholds_what_is_no_file_of_a_key(scheme: str, named: str) -> None:
    """A key provider and a key in a token, named as they are shown, are for the rule's pods alone."""
    asked: list[str] = []

    class Elsewhere(Tools):
        def ask(self, name: str, blob: bytes, deadline: Deadline) -> bytes:
            asked.append(name)
            return PRIVATE.to_json()

        def token(self, key: Any, blob: bytes, deadline: Deadline) -> bytes | None:
            asked.append(key.name)
            return PRIVATE.to_json()

    file = b"pkcs11:\n  uri: pkcs11:token=My%20HSM;object=node?pin-value=1\n"
    tools = Elsewhere({}, None)
    tools.providers = {"vault": Provider("vault", ("/p",))}
    policy = Policy([KeyRule(namespaces=("payments",), keys=(named,))])
    desk = Desk(lambda: Keyring([KeyFile("token.yaml", file)]), tools=tools, policy=policy)
    notes = {f"{options.WRAPPED}{scheme}": options.encode(b"blob"), options.PUBLIC: options.to_annotation(bytes(32))}
    layer = keys_pb2.Layer(digest="sha256:1", media_type="x+encrypted", annotations=notes)
    with pytest.raises(Refused, match="key policy does not let this pod use it"):
        desk.check(keys_pb2.Use(namespace="web"), [layer], 5)
    assert asked == []

    (opened,) = desk.check(keys_pb2.Use(namespace="payments"), [layer], 5)
    assert opened.fingerprint == named
    assert len(asked) == 1


def test_the_policy_withholds_keys(formats: dict[str, bytes]) -> None:
    """A key that a rule names is for that rule's pods; the refusal names the policy; what is remembered obeys it."""
    rule = KeyRule(namespaces=("payments",), pod_labels={"tier": "backend"}, keys=(fingerprint(formats).upper(),))
    bench = Bench(formats, policy=Policy([rule]), remember=1000)
    layer = bench.layer()
    good: dict[str, Any] = {"namespace": "payments", "pod_labels": {"tier": "backend", "app": "api"}}

    assert bench.check(layer, **good)
    for use in ({}, {"namespace": "payments"}, {**good, "namespace": "web"}, {**good, "pod_labels": {"tier": "x"}}):
        with pytest.raises(Refused, match="key policy does not let this pod use it"):
            bench.check(layer, **use)


def test_keys_without_a_rule_are_for_all(formats: dict[str, bytes]) -> None:
    """Naming one key restricts that one alone."""
    bench = Bench(formats, policy=Policy([KeyRule(namespaces=("a",), keys=("00" * 32,))]))

    assert bench.check(bench.layer())


@pytest.mark.parametrize(
    ("account", "fits"), [("payments/api", True), ("web/api", False), ("payments/other", False), ("/", False)]
)
def test_rules_by_service_account(account: str, fits: bool) -> None:
    """A service account is named with its namespace."""
    namespace, _, name = account.partition("/")
    policy = Policy([KeyRule(service_accounts=("payments/api",), keys=("sha256:aa",))])
    use = keys_pb2.Use(namespace=namespace, service_account=name)

    assert policy.withheld(use) == (frozenset() if fits else {"aa"})


@pytest.mark.parametrize(
    ("namespace", "labels", "fits"),
    [("payments", {"tier": "x"}, True), ("payments", {}, False), ("web", {"tier": "x"}, False), ("", {}, False)],
)
def test_a_pull_is_decided_without_the_service_account(namespace: str, labels: dict[str, str], fits: bool) -> None:
    """Where the service account is not known yet, namespace and labels decide, that of the account included."""
    policy = Policy([KeyRule(service_accounts=("payments/api",), pod_labels={"tier": "x"}, keys=("aa",))])
    use = keys_pb2.Use(namespace=namespace, pod_labels=labels, open=keys_pb2.Use.SERVICE_ACCOUNT)

    assert policy.withheld(use) == (frozenset() if fits else {"aa"})


def test_for_any_pod_is_for_checks_alone(formats: dict[str, bytes]) -> None:
    """Whether the node has a key at all can be asked past the policy; no layer is opened that way."""
    rule = KeyRule(namespaces=("payments",), keys=(fingerprint(formats),))
    bench = Bench(formats, policy=Policy([rule]))
    use = keys_pb2.Use(open=keys_pb2.Use.POD)

    assert bench.desk.check(use, [bench.layer()], 10)
    with pytest.raises(InvalidArgument, match="for checks alone"):
        bench.desk.open("decrypt", use, bench.layer(), Deadline(60, "unwrapping"))


def test_a_grant_is_for_its_use_alone(formats: dict[str, bytes]) -> None:
    """Keys that root lends open a layer under the grant's id, policy or not, and for nobody else; then it is over."""
    rule = KeyRule(namespaces=("payments",), keys=(fingerprint(formats),))
    bench = Bench(formats, policy=Policy([rule]), remember=1000)
    bench.names = []
    bench.desk.reload()
    layer = bench.layer()
    with bench.desk.grants.lend(Keyring([KeyFile("mykey.pem", formats["pkcs8.pem"])])) as ident:
        assert bench.check(layer, grant=ident)[0].fingerprint == fingerprint(formats)
        with pytest.raises(Refused, match="missing private key"):
            bench.check(layer)
        with pytest.raises(FailedPrecondition, match="grant of keys is over"):
            bench.check(layer, grant="0" * 32)
    with pytest.raises(FailedPrecondition, match="grant of keys is over"):
        bench.check(layer, grant=ident)


def test_recipients_are_roots_to_add(bench: Bench, formats: dict[str, bytes]) -> None:
    """Neither image-svc nor anybody else has a layer key wrapped anew without root; a grant without keys will do."""
    recipient = keys_pb2.Recipient(scheme="jwe", key=formats["public.pem"])
    request = keys_pb2.RecipientsRequest(layer=bench.layer(), recipients=[recipient])
    with pytest.raises(PermissionDenied):
        bench.desk.add_recipients(request, by_root=False)
    with bench.desk.grants.lend(Keyring([])) as ident:
        request.use.grant = ident
        annotations = bench.desk.add_recipients(request, by_root=False).annotations

    assert annotations[f"{options.WRAPPED}jwe"].count(",") == 1
    assert bench.check(keys_pb2.Layer(media_type=ENCRYPTED, annotations=annotations))


@pytest.mark.parametrize(
    ("recipients", "message"),
    [
        ([], "0 recipients"),
        ([keys_pb2.Recipient(scheme="rot13")], "scheme 'rot13'"),
        ([keys_pb2.Recipient(scheme="jwe", key=b"junk")], "recipient jwe"),
        ([keys_pb2.Recipient(scheme="pkcs7", key=b"junk")], "recipient pkcs7"),
        ([keys_pb2.Recipient(scheme="provider", name="x")], "no key provider of that name"),
        ([keys_pb2.Recipient(scheme="pkcs11", key=b"junk")], "recipient pkcs11"),
        ([keys_pb2.Recipient(scheme="jwe", key=b"x")] * 257, "257 recipients"),
    ],
)
def test_wrong_recipients_are_named(recipients: list[keys_pb2.Recipient], message: str) -> None:
    """A recipient that cannot be one is an error before a byte is encrypted."""
    with pytest.raises(InvalidArgument, match=message):
        wrap.annotations(b"payload", recipients, TOOLS, Deadline(60, "wrapping"))


def test_trying_ends_in_time(formats: dict[str, bytes]) -> None:
    """However many keys and copies there are, a check ends when its time is over."""
    bench = Bench(formats)
    layer = bench.layer()
    with pytest.raises(DeadlineExceeded, match="took longer than 0 s"):
        bench.desk.check(keys_pb2.Use(), [layer], 0)


def test_one_bad_file_disables_itself_alone(formats: dict[str, bytes]) -> None:
    """ListKeys shows the good key with its fingerprint and the bad file with its error."""
    bench = Bench(formats)
    bench.names = ["junk", "pkcs8.pem"]
    bench.desk.reload()
    listed = {key.file: key for key in bench.desk.listed()}

    assert listed["pkcs8.pem"].fingerprint
    assert not listed["pkcs8.pem"].error
    assert "not a key" in listed["junk"].error
    assert bench.desk.complaints() == [f"key file 'junk': {listed['junk'].error}"]


SCHEMES = st.sampled_from(["jwe", "pkcs7", "pgp", "pkcs11", "provider.x", "rot13", ""])
COPIES = st.lists(st.binary(max_size=80), max_size=3)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(SCHEMES, COPIES, max_size=4), st.text(max_size=40))
def test_any_image_is_refused_in_words(formats: dict[str, bytes], copies: dict[str, list[bytes]], digest: str) -> None:
    """Whatever an image wraps under whatever scheme, with every kind of key at hand, it is refused in words."""
    bench = Bench(formats)
    bench.names = ["chain-and-key.pem", "ec.jwk", "ring.gpg", "token.yaml"]
    bench.desk.reload()
    annotations = {
        f"{options.WRAPPED}{scheme}": ",".join(base64.b64encode(blob).decode() for blob in blobs)
        for scheme, blobs in copies.items()
    }
    annotations[options.PUBLIC] = options.to_annotation(b"m" * 32)
    with pytest.raises(Refused) as error:
        bench.check(keys_pb2.Layer(digest=digest, media_type=ENCRYPTED, annotations=annotations))

    assert str(error.value).startswith("you are not authorized to use this image")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("dangerous", ["module:\n  env: {LD_PRELOAD: /tmp/own.so}\n", "pin-source", ""])
def test_only_root_says_how_a_token_is_used(formats: dict[str, bytes], tmp_path: Path, dangerous: str) -> None:
    """A recipient's key file, which may set variables, name a file as PIN, or try PINs until the token locks itself, is
    refused unless root gives it, or gave it to the node.
    """
    uri = "pkcs11:token=x;object=y?module-name=m"
    uri += f"&pin-source=file:{tmp_path}/key" if dangerous == "pin-source" else "&pin-value=1"
    file = f"pkcs11:\n  uri: {uri}\n{'' if dangerous == 'pin-source' else dangerous}".encode()
    bench = Bench({**formats, "own.yaml": file})
    request = keys_pb2.EncryptRequest(
        layer=keys_pb2.Layer(digest=DIGEST), recipients=[keys_pb2.Recipient(scheme="pkcs11", key=file)]
    )

    def encrypt(*, by_root: bool = False) -> None:
        bench.desk.encrypt(request, ends=None, started=lambda: None, by_root=by_root)  # type: ignore[arg-type] # not reached

    with pytest.raises(InvalidArgument, match="is root's to give"):
        encrypt()
    # What comes next: the program, which this bench does not start.
    with pytest.raises(FailedPrecondition, match="starts no programs"):
        encrypt(by_root=True)
    bench.names.append("own.yaml")
    bench.desk.reload()
    with pytest.raises(FailedPrecondition, match="starts no programs"):
        encrypt()
