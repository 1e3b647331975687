"""WWW-Authenticate headers are read whatever their shape."""

from hypothesis import given
from hypothesis import strategies as st

from image_svc.registry.challenge import Challenge, parse


def test_docker_hub() -> None:
    """Commas within quotes belong to the value."""
    header = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'

    assert parse(header) == [
        Challenge(
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:a/b:pull,push",
            },
        )
    ]


def test_several_schemes() -> None:
    """One header may hold several challenges, one of them with a token68 and one with nothing."""
    found = parse('Negotiate abc/+==, Basic realm="a \\"b\\"" , BEARER Realm=https://h:1/t,service=s, Digest')

    assert [each.scheme for each in found] == ["negotiate", "basic", "bearer", "digest"]
    assert found[1].parameters == {"realm": 'a "b"'}
    assert found[2].parameters == {"realm": "https://h:1/t", "service": "s"}


def test_rubbish_is_left_out() -> None:
    """What cannot be read yields no challenge and no error."""
    assert parse("") == []
    assert parse(' ,, "x" , =') == []
    assert parse('Basic realm="never closed')[0].scheme == "basic"


@given(st.text(alphabet='aB1="\\, \t/:~', max_size=80))
def test_any_text_ends(header: str) -> None:
    """Parsing any text ends, with names in lower case."""
    for each in parse(header):
        assert each.scheme == each.scheme.lower()
        assert all(name == name.lower() for name in each.parameters)


@given(st.dictionaries(st.sampled_from(["realm", "service", "scope"]), st.text("aZ/:,= .", max_size=20), min_size=1))
def test_quoted_values_survive(values: dict[str, str]) -> None:
    """Quoted parameters come back as they were written."""
    header = "Bearer " + ",".join(f'{name}="{value}"' for name, value in values.items())

    assert parse(header) == [Challenge("bearer", values)]
