"""Attacks on the readers of text files: lists of checkpoints, catalogs, manifests."""

from __future__ import annotations

from tests.attacks.attack import MARK, attack


def make_text_attacks() -> None:
    path = 'model_checkpoint_path: "model.ckpt-1"\n'
    attack("nested.checkpoint", "messages nested 20,000 deep", b"a {" * 20_000)
    attack("two-paths.checkpoint", "two latest checkpoints", (path * 2).encode())
    attack("binary.checkpoint", "bytes that are no text", bytes(range(256)))
    attack("unclosed.checkpoint", "a name that does not end", (path.rstrip()[:-1] + "x" * 5000).encode())
    attack("no-name.checkpoint", "a name that is a folder", b'model_checkpoint_path: "/etc/"\n')
    known = f'["m"]\ndataset = "d"\nurl = "https://example.org/m.zip"\nsha256 = "{"0" * 64}"\n'
    attack("nested.toml", "arrays nested 50,000 deep", b"a = " + b"[" * 50_000)
    attack("number-of-5000-digits.toml", "a size of 5,000 digits", (known + "size = " + "9" * 5000).encode())
    attack("key-twice.toml", "one key twice", (known + 'dataset = "e"\n').encode())
    attack(
        "name-leads-out.toml",
        "a checkpoint called ../../executed",
        known.replace('"m"', f'"../../{MARK}"').encode(),
    )
    attack(
        "file-address.toml",
        "an address that names a local file",
        known.replace("https://example.org/m.zip", "file:///etc/passwd").encode(),
    )
    attack(
        "published-name.toml",
        "another archive under a published name",
        known.replace('"m"', '"20180402-114759"').encode(),
    )
    attack("nested.json", "a manifest nested 100,000 deep", b"[" * 100_000)
    network = '"network": {"embedding_size": %s, "num_classes": null}'
    manifest = '{"source": {"files": {}}, ' + network + ', "output": %s}'
    attack(
        "number-of-5000-digits.json",
        "a manifest with a size of 5,000 digits",
        (manifest % ("9" * 5000, "{}")).encode(),
    )
    attack(
        "digest-of-no-digits.json",
        "a manifest whose digest is a pattern",
        (manifest % (512, '{"w.pt": ".*"}')).encode(),
    )
    attack(
        "not-a-number.json",
        "a manifest with a size that is not a number",
        (manifest % ("NaN", "{}")).encode(),
    )
