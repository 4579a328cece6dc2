"""A pytest plugin: the table of releases with one more row, a newest release that nobody has seen.

Its TCP descriptor has 16 more bytes in front of ``vuuid``. ``-p synthetic_release`` adds it.
"""

from nstat_async.ntstat import RELEASES, Layout, Release

PLACE, GROWTH = 292, 16
ROW = Release(
    (13361,), Layout(13, grown={"nstat_tcp_descriptor": (PLACE, GROWTH)}), darwin={(27,): (13361,)}, known=False
)

if ROW not in RELEASES:
    RELEASES.append(ROW)
