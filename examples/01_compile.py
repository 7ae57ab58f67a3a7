"""Compile a language model for a phone, and read the byte table.

    python examples/01_compile.py MODEL OUT        (a Hugging Face folder or hub name; a folder to write)

The same on the command line: drawplate compile MODEL --recipe meta-8da4w --out OUT
"""

import sys

import drawplate

model, out = sys.argv[1:3]

# What would happen, without loading weights: the order with its reasons, bytes, memory.
print(drawplate.plan(model, recipe="meta-8da4w"))

artifact = drawplate.compile(model, recipe="meta-8da4w", out=out, overwrite=True, verify=True)

for row in sorted(artifact.manifest.bytes, key=lambda row: -row.bytes)[:5]:
    print(f"{row.bytes:>12,} bytes  {row.role:<8} {row.name}  {row.encoding}")
print(f"{artifact.manifest.file_bytes:>12,} bytes in {len(artifact.manifest.files)} files")
for certificate in artifact.manifest.certificates:
    print(f"{certificate.pass_name}: {certificate.invariant} holds, error {certificate.error:.3g}")
