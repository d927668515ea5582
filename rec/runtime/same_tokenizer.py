"""Rows hold token ids, which say other words, without an error, to another tokenizer's encoder."""

from __future__ import annotations

from tokenizers import Tokenizer

from rec.artifacts import MANIFEST, Manifest, exists, join, read_bytes, read_manifest
from rec.runtime.partition import EmbedError

_FILE = "tokenizer/tokenizer.json"


def refuse_other_tokenizer(encoder_uri: str, encoder: Manifest, rows_uri: str) -> None:
    """Raise EmbedError where the published rows at `rows_uri` were tokenised by another tokenizer
    than the encoder's. Of what does not tell its tokenizer, such as a plain folder, nothing is
    known."""
    if not exists(join(rows_uri, MANIFEST)):
        return
    rows = read_manifest(rows_uri)
    if _FILE not in rows.files or _FILE not in encoder.files:
        return
    if rows.files[_FILE] == encoder.files[_FILE]:
        return
    # another version of the library may have written the same one in other bytes
    if _ids(encoder_uri, encoder) != _ids(rows_uri, rows):
        raise EmbedError(
            f"{rows_uri}: its texts were tokenised by another tokenizer than that of the encoder "
            f"{encoder_uri}, to which their token ids mean other words; make the rows again with "
            f"--set rows.text.tokenizer={join(encoder_uri, encoder.root, 'tokenizer')} (a local "
            "folder), or train an encoder on these rows"
        )


def _ids(uri: str, manifest: Manifest) -> dict[str, int]:
    file = read_bytes(join(uri, manifest.root, _FILE))
    return Tokenizer.from_buffer(file).get_vocab(with_added_tokens=True)
