"""Look at a model as drawplate sees it: its text, its weight matrices by role, its blocks, what was not recognised.

    python examples/02_look_inside.py MODEL

The same on the command line: drawplate inspect MODEL
"""

import sys

import drawplate
from drawplate.analysis.blocks import blocks
from drawplate.analysis.sites import sites
from drawplate.canonical import canonicalise, unrecognised

program = canonicalise(drawplate.capture(sys.argv[1]).program)

print("\n".join(str(program).splitlines()[:12]), "\n  ..")

for site in sites(program)[:8]:
    print(f"{site.role:<9} {site.name:<45} {list(site.shape)}")

found = blocks(program)
print(f"{len(found)} blocks of {len({b.kind for b in found})} kinds: {found[0].name} .. {found[-1].name}")

for refusal in unrecognised(program):
    print("not recognised:", refusal)
