"""Reference areas, containment and outlines for slide_io/src/regions.rs, from shapely (GEOS).

    python3 tests/golden/regions/make.py        # writes annotations.geojson and expected.json beside this file

`annotations.geojson` holds polygons with holes, islands and exclusions as QuPath would export them; `expected.json` their
areas, which pixel centres of two masks they contain, and the outlines of a mask as the union of its pixels, taken as
squares. `tissue.geojson` is what `Regions::write` makes of that mask (a test holds it to that byte for byte): here it is
read back by shapely and must be valid, right-handed and of the same shape.
"""

import json
import pathlib
import uuid

import numpy as np
import shapely
import shapely.affinity
from shapely.geometry import MultiPolygon, Point, Polygon, box, mapping, shape
from shapely.geometry.polygon import orient

HERE = pathlib.Path(__file__).parent
SLIDE = (1000, 800)


def rounded(geometry):
    return shapely.set_precision(geometry, 0.01)


def annotations():
    ring = rounded(Point(300.3, 250.7).buffer(190.1).difference(Point(310.2, 240.9).buffer(90.4)))
    island = rounded(Point(311.7, 243.2).buffer(35.3))
    field = Polygon(
        [(520.13, 60.31), (930.77, 110.4), (880.2, 420.9), (701.6, 300.05), (560.9, 433.3)],
        [[(600.2, 150.1), (660.4, 160.7), (640.1, 230.2)], [(800.3, 180.3), (850.9, 190.1), (820.6, 260.8)]],
    )
    over_the_edge = rounded(Point(40.6, 790.3).buffer(160.2))
    fold = Polygon([(380.4, 200.2), (540.1, 210.3), (600.6, 330.8), (420.7, 290.9)])
    return [
        ("Tumor", MultiPolygon([ring, island])),
        ("Stroma", field),
        (None, over_the_edge),
        ("Ignore*", fold),
    ]


def feature(class_name, geometry):
    properties = {"objectType": "annotation"}
    if class_name:
        properties["classification"] = {"name": class_name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": mapping(geometry), "properties": properties}


def contained(geometry, width, height):
    """One text of # and . for every row of a mask of width x height pixels: is the centre inside?"""
    x = (np.arange(width) + 0.5) * SLIDE[0] / width
    y = (np.arange(height) + 0.5) * SLIDE[1] / height
    inside = shapely.contains_xy(geometry, *np.meshgrid(x, y))
    near = shapely.distance(geometry.boundary, shapely.points(*np.meshgrid(x, y)))
    assert near.min() > 1e-6, "a centre on a border would be a matter of rounding"
    return rows(inside)


def rows(mask):
    return ["".join("#" if pixel else "." for pixel in row) for row in mask]


def corners(ring):
    """The corners of a rectilinear ring without those on straight runs, from the smallest on."""
    points = [tuple(map(int, p)) for p in ring.coords[:-1]]
    turns = [
        b
        for a, b, c in zip(points[-1:] + points[:-1], points, points[1:] + points[:1])
        if not (a[0] == b[0] == c[0] or a[1] == b[1] == c[1])
    ]
    first = turns.index(min(turns))
    return turns[first:] + turns[:first]


def outlines(mask):
    """The union of the pixels as polygons: exterior and holes, right-handed, sorted."""
    union = shapely.union_all([box(x, y, x + 1, y + 1) for y, x in zip(*np.nonzero(mask))])
    polygons = [orient(p, 1.0) for p in (union.geoms if hasattr(union, "geoms") else [union])]
    found = [{"exterior": corners(p.exterior), "holes": sorted(map(corners, p.interiors))} for p in polygons]
    return union, sorted(found, key=lambda p: p["exterior"])


def check_written(union, scale):
    path = HERE / "tissue.geojson"
    if not path.exists():
        return
    features = json.loads(path.read_text())["features"]
    written = [shape(f["geometry"]) for f in features]
    assert all(p.geom_type == "Polygon" and p.is_valid and p.exterior.is_ccw for p in written)
    assert not any(hole.is_ccw for p in written for hole in p.interiors)
    assert len({uuid.UUID(f["id"]) for f in features}) == len(features)
    together = shapely.affinity.scale(shapely.union_all(written), 1 / scale, 1 / scale, origin=(0, 0))
    assert together.symmetric_difference(union).area == 0 and sum(p.area for p in written) == union.area * scale**2
    print(f"tissue.geojson: {len(features)} pieces, valid, as drawn")


drawn = annotations()
assert all(geometry.is_valid for _, geometry in drawn)
inside = shapely.union_all([g for name, g in drawn if name != "Ignore*"])
inside = inside.difference(shapely.union_all([g for name, g in drawn if name == "Ignore*"]))
collection = {"type": "FeatureCollection", "features": [feature(*one) for one in drawn]}
(HERE / "annotations.geojson").write_text(json.dumps(collection) + "\n")

rng = np.random.default_rng(3)
mask = rng.random((20, 28)) < 0.58
union, polygons = outlines(mask)
expected = {
    "slide": SLIDE,
    "areas": [geometry.area for _, geometry in drawn],
    "masks": [contained(inside, 100, 80), contained(inside, 61, 47)],
    "tissue": {"scale": 16, "rows": rows(mask), "outlines": polygons},
}
(HERE / "expected.json").write_text(json.dumps(expected, indent=None, separators=(",", ":")) + "\n")
check_written(union, 16)
