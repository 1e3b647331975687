"""containerd's stream processors: ctd-decoder means the decryptor, everything else is a program."""

from bulkhead import processors
from bulkhead.config.model import Config, StreamProcessor

TAR = "application/vnd.oci.image.layer.v1.tar"
DECODER = StreamProcessor(
    "decoder",
    (f"{TAR}+encrypted",),
    TAR,
    "/usr/local/bin/ctd-decoder",
    ("--decryption-keys-path", "/k"),
    ("OCICRYPT_KEYPROVIDER_CONFIG=/etc/p.conf", "LD_PRELOAD=/evil.so", "OCICRYPT_CONFIG=internal", "nonsense"),
)
PROGRAM = StreamProcessor("lz4", ("application/x.lz4",), TAR, "lz4-decoder")
CONFIG = Config(stream_processors=(DECODER, PROGRAM))


def test_decoders_are_told_by_name() -> None:
    """The program's name decides, wherever it stands."""
    assert processors.is_decoder(DECODER)
    assert processors.programs(CONFIG) == [PROGRAM]


def test_a_media_type_finds_its_processor() -> None:
    """The first entry that accepts a type is its processor."""
    assert processors.for_media_type(CONFIG, f"{TAR}+encrypted") is DECODER
    assert processors.for_media_type(CONFIG, "application/x.lz4") is PROGRAM
    assert processors.for_media_type(CONFIG, TAR) is None


def test_a_decoders_settings_are_the_decryptors() -> None:
    """Keys path and ocicrypt's variables are taken over; no other variable is, and only files that are named."""
    assert processors.keys_path(CONFIG) == "/k"
    assert processors.decoder_environment(CONFIG) == {
        "OCICRYPT_KEYPROVIDER_CONFIG": "/etc/p.conf",
        "OCICRYPT_CONFIG": "internal",
    }
    assert processors.decoder_files(CONFIG) == ("/etc/p.conf",)
