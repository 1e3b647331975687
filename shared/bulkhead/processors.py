"""containerd's stream processors: which of them are ctd-decoder, and so the decryptor's, and which are programs."""

from pathlib import PurePath

from bulkhead.config.model import Config, StreamProcessor

DECODER = "ctd-decoder"
KEYS_OPTION = "--decryption-keys-path"
#: Variables that ocicrypt reads; nothing else of an entry's environment means anything to the decryptor.
_READ_BY_OCICRYPT = (
    "OCICRYPT_KEYPROVIDER_CONFIG",
    "OCICRYPT_CONFIG",
    "OCICRYPT_OAEP_HASHALG",
    "XDG_CONFIG_HOME",
)


def is_decoder(processor: StreamProcessor) -> bool:
    """Whether an entry means imgcrypt's decoder, by the name of its program; the decryptor does its work here."""
    return PurePath(processor.path).name == DECODER


def for_media_type(config: Config, media_type: str) -> StreamProcessor | None:
    """Return the first entry that accepts a layer's media type, whether decoder or program; None if none does."""
    return next((each for each in config.stream_processors if media_type in each.accepts), None)


def programs(config: Config) -> list[StreamProcessor]:
    """Return the entries that are programs to run."""
    return [each for each in config.stream_processors if each.path and not is_decoder(each)]


def keys_path(config: Config) -> str:
    """Return the directory of private keys: that of the first decoder entry that names one, else the setting."""
    for processor in filter(is_decoder, config.stream_processors):
        for argument, following in zip(processor.args, [*processor.args[1:], ""], strict=True):
            if argument == KEYS_OPTION and following:
                return following
            if argument.startswith(f"{KEYS_OPTION}="):
                return argument.partition("=")[2]
    return config.bulkhead.decryption_keys_path


def decoder_environment(config: Config) -> dict[str, str]:
    """Return the variables of decoder entries that ocicrypt reads; the first entry that sets one wins."""
    found: dict[str, str] = {}
    for processor in filter(is_decoder, config.stream_processors):
        for line in processor.env:
            name, equals, value = line.partition("=")
            if equals and name in _READ_BY_OCICRYPT:
                found.setdefault(name, value)
    return found


def decoder_files(config: Config) -> tuple[str, ...]:
    """Return the files that those variables name, which the decryptor's user must be able to read."""
    variables = decoder_environment(config)
    named = (variables.get(name, "") for name in ("OCICRYPT_KEYPROVIDER_CONFIG", "OCICRYPT_CONFIG"))
    return tuple(file for file in named if file.startswith("/"))
