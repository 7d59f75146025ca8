"""Program: makes commits as fast as it can, beside others that do so. Arguments: URL, source, how many."""

import sys

from stream.shards.commits import Accounts, NewCommit
from stream.shards.manifest import Manifest


def main(url: str, source: str, count: int) -> None:
    """Commit `count` times; the position is the number of commits of this source."""
    manifest = Manifest.open(url, create=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for position in range(1, count + 1):
        n = position % 5
        uri = f"shards/{source}{position}.tar" if n else ""
        manifest.commit(
            NewCommit(
                n=n,
                uri=uri,
                index_uri=uri.replace("shards/", "index/"),
                source_id=source,
                source_position=position,
                accounts=Accounts(written=n),
            )
        )
    manifest.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
