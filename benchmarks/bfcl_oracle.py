"""What does a server score on BFCL that knows the answers?

    make setup-bfcl
    python benchmarks/bfcl_oracle.py --out runs/oracle
    python benchmarks/bfcl_oracle.py --out runs/oracle-spoilt --spoil 3

Everything between the server and the official score is the real thing: the harness, our handler, the checker.
`--spoil N` answers one entry in N wrong; the score must be the predicted one, entry by entry.
"""

import argparse
import json
import zlib
from collections import Counter
from pathlib import Path

from unbraid.bench.bfcl.installation import find_bfcl
from unbraid.bench.bfcl.oracle import Gold, Oracle, predicted
from unbraid.bench.bfcl.run import Asking, bfcl
from unbraid.bench.bfcl.served import at_url
from unbraid.bench.score import by_category, read_entries


def main() -> None:
    """Print the score of every category, what was wrong and why, and one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--prompting", action="store_true")
    parser.add_argument("--spoil", type=int, default=0, help="one entry in so many is answered wrong; 0: none")
    given = parser.parse_args()
    gold = Gold(find_bfcl())

    def spoilt(name: str) -> bool:
        return given.spoil > 0 and zlib.crc32(name.encode()) % given.spoil == 0

    with Oracle(gold, spoilt).serving() as url:
        asking = Asking(limit=given.limit, prompting=given.prompting)
        score = bfcl(gold.installation, at_url(url), given.out, asking)
    entries = read_entries(score.setting.folder(given.out))
    truth = predicted(gold, [entry.id for entry in entries])
    right = {name: truth[name] and not spoilt(name) for name in truth}
    print("| category | entries | right | predicted |\n| - | - | - | - |")
    for name, some in by_category(entries).items():
        scored, expected = sum(e.score for e in some) / len(some), sum(right[e.id] for e in some) / len(some)
        print(f"| {name} | {len(some)} | {100 * scored:.1f} | {100 * expected:.1f} |")
    reasons = Counter((e.category, e.reason) for e in entries if not e.score and not spoilt(e.id))
    for (category, reason), count in sorted(reasons.items()):
        ids = [
            e.id for e in entries if not e.score and not spoilt(e.id) and (e.category, e.reason) == (category, reason)
        ]
        print(f"{category}: {reason}, {count}: {' '.join(ids)}")
    otherwise = sum(bool(entry.score) is not right[entry.id] for entry in entries)
    facts = {"entries": len(entries), "right": sum(e.score for e in entries), "not as predicted": otherwise}
    print(json.dumps({**facts, "totals": dict(score.totals)}))


if __name__ == "__main__":
    main()
