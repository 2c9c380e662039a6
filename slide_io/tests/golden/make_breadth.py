"""Writes breadth/: one small TIFF for every kind the native reader is said to read, and what tifffile decodes it to.

Each file holds the same picture, 72 x 56 px, so that tiles and strips end with a part. `NAME.tif` is compared with
`NAME.png` where there is one, and otherwise with `rgb.png`. Alpha is composited on white as libtiff and OpenSlide do it.
The files are also the seeds of the mutation test and of the fuzzer. Needs numpy, tifffile, imagecodecs, pillow and OpenJPEG's opj_compress.
"""
import shutil
import subprocess
import tempfile
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

OUT = Path(__file__).with_name("breadth")
HEIGHT, WIDTH = 56, 72
y, x = np.mgrid[0:HEIGHT, 0:WIDTH]


def picture() -> np.ndarray:
    """Pink waves with dark round spots."""
    wave = np.sin(x / 9) * 20 + np.cos(y / 7) * 20
    rgb = np.stack([210 + wave / 2, 140 + wave, 190 + wave / 3], axis=-1)
    for cx, cy, r in [(12, 10, 6), (40, 33, 9), (66, 20, 7), (25, 48, 7), (55, 52, 5)]:
        rgb[(x - cx) ** 2 + (y - cy) ** 2 <= r * r] = 90, 50, 140
    return rgb.round().astype(np.uint8)


RGB = picture()
GREY = RGB[..., 1].copy()
ALPHA = np.clip((x - 8) * 6, 0, 255).astype(np.uint8)


def multiplied(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return ((color.astype(int) * alpha[..., None] + 127) // 255).astype(np.uint8)


def on_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.minimum(color.astype(int) + 255 - alpha[..., None], 255).astype(np.uint8)


def write(name: str, data: np.ndarray, expected: np.ndarray | None = None, **options) -> None:
    options = {"photometric": "rgb", "metadata": None, "software": False} | options
    with tifffile.TiffWriter(OUT / f"{name}.tif", bigtiff=options.pop("big", False), byteorder=options.pop("order", "<")) as tiff:
        tiff.write(data, **options)
    if expected is not None:
        expected = np.repeat(expected[..., None], 3, axis=-1) if expected.ndim == 2 else expected
        Image.fromarray(expected).save(OUT / f"{name}.png", optimize=True)


def decoded(name: str) -> np.ndarray:
    return tifffile.imread(OUT / f"{name}.tif")


def write_lossy(name: str, data: np.ndarray = RGB, **options) -> None:
    write(name, data, **options)
    write(name, data, decoded(name), **options)


shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir()
Image.fromarray(RGB).save(OUT / "rgb.png", optimize=True)
TILE, STRIP = {"tile": (32, 32)}, {"rowsperstrip": 20}
# "photometric" is then what the picture is, and this what the file will hold.
YCBCR = {"level": 90, "outcolorspace": "ycbcr"}
DEFLATE, LZW, PREDICTED = {"compression": "zlib"}, {"compression": "lzw"}, {"predictor": 2}

# Layout and byte order.
write("raw_classic_le_strips", RGB, **STRIP)
write("raw_classic_be_tiles", RGB, order=">", **TILE)
write("raw_big_le_tiles", RGB, big=True, **TILE)
write("raw_big_be_strips", RGB, big=True, order=">", **STRIP)

# Compressions without loss.
write("deflate_tiles", RGB, **DEFLATE, **TILE)
write("deflate_predicted_tiles", RGB, **DEFLATE, **PREDICTED, **TILE)
write("lzw_strips", RGB, **LZW, **STRIP)
write("lzw_predicted_tiles", RGB, order=">", **LZW, **PREDICTED, **TILE)
write("packbits_strips", RGB, compression="packbits", **STRIP)

# Planes stored apart.
PLANES, APART = RGB.transpose(2, 0, 1), {"planarconfig": "separate"}
write("planes_raw_tiles", PLANES, **APART, **TILE)
write("planes_deflate_predicted_strips", PLANES, order=">", **APART, **DEFLATE, **PREDICTED, **STRIP)
write("planes_lzw_predicted_tiles", PLANES, **APART, **LZW, **PREDICTED, **TILE)
write("planes_jpeg_tiles", PLANES, **APART, compression="jpeg", compressionargs={"level": 90}, **TILE)
write("planes_jpeg_tiles", PLANES, decoded("planes_jpeg_tiles").transpose(1, 2, 0), **APART, compression="jpeg", compressionargs={"level": 90}, **TILE)

# 16 bits: rounded to 8 as (v + 128) / 257, so that what was 8 bits comes back.
WIDE = RGB.astype(np.uint16) * 257 + ((x + y) % 129)[..., None].astype(np.uint16) * (RGB < 255)
write("rgb16_raw_tiles", WIDE, ((WIDE.astype(int) + 128) // 257).astype(np.uint8), **TILE)
write("rgb16_lzw_predicted_be_tiles", WIDE, ((WIDE.astype(int) + 128) // 257).astype(np.uint8), order=">", **LZW, **PREDICTED, **TILE)
write("rgb16_planes_deflate_predicted_le_tiles", WIDE.transpose(2, 0, 1), ((WIDE.astype(int) + 128) // 257).astype(np.uint8), **APART, **DEFLATE, **PREDICTED, **TILE)
write("grey16_deflate_strips", WIDE[..., 1].copy(), ((WIDE[..., 1].astype(int) + 128) // 257).astype(np.uint8), photometric="minisblack", **DEFLATE, **STRIP)

# Grey, palette, alpha.
write("grey_lzw_tiles", GREY, GREY, photometric="minisblack", **LZW, **TILE)
write("grey_inverted_deflate_tiles", GREY, 255 - GREY, photometric="miniswhite", **DEFLATE, **TILE)
MAP = (np.arange(256)[None] * np.array([[200], [257], [90]]) % 65536).astype(np.uint16)
write("palette_lzw_tiles", GREY, (MAP >> 8).astype(np.uint8).T[GREY], photometric="palette", colormap=MAP, **LZW, **TILE)
PLAIN, TIMES = np.dstack([RGB, ALPHA]), np.dstack([multiplied(RGB, ALPHA), ALPHA])
COMPOSED = on_white(multiplied(RGB, ALPHA), ALPHA)
write("alpha_apart_deflate_tiles", PLAIN, COMPOSED, extrasamples=["unassalpha"], **DEFLATE, **TILE)
write("alpha_multiplied_lzw_predicted_tiles", TIMES, COMPOSED, extrasamples=["assocalpha"], **LZW, **PREDICTED, **TILE)
write("alpha_planes_deflate_strips", PLAIN.transpose(2, 0, 1), COMPOSED, extrasamples=["unassalpha"], **APART, **DEFLATE, **STRIP)
write("unspecified_sample_deflate_tiles", PLAIN, RGB, extrasamples=["unspecified"], **DEFLATE, **TILE)
GREY_COMPOSED = on_white(multiplied(GREY[..., None], ALPHA), ALPHA)[..., 0]
write("grey_alpha_deflate_tiles", np.dstack([GREY, ALPHA]), GREY_COMPOSED, photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig", **DEFLATE, **TILE)

# JPEG: every tile with its own tables (no JPEGTables), every subsampling of YCbCr, RGB components, grey.
for h, v in [(1, 1), (2, 1), (2, 2), (4, 1)]:
    write_lossy(f"jpeg_ycbcr_{h}{v}_tiles", compression="jpeg", subsampling=(h, v), compressionargs=YCBCR, **TILE)
# tifffile does not write this one; here the tag says 2, 2 and the streams know better.
for name, kind in [("12", "440")]:
    tiles = [
        imagecodecs.jpeg8_encode(np.pad(RGB, ((0, 8), (0, 24), (0, 0)), "edge")[j : j + 32, i : i + 32], 90, subsampling=kind)
        for j in (0, 32)
        for i in (0, 32, 64)
    ]
    options = {"shape": RGB.shape, "dtype": RGB.dtype, "photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
    write(f"jpeg_ycbcr_{name}_tiles", iter(tiles), **options, **TILE)
    write(f"jpeg_ycbcr_{name}_tiles", iter(tiles), decoded(f"jpeg_ycbcr_{name}_tiles"), **options, **TILE)
write_lossy("jpeg_ycbcr_22_strips", compression="jpeg", subsampling=(2, 2), compressionargs=YCBCR, rowsperstrip=16)
write_lossy("jpeg_rgb_tiles", compression="jpeg", compressionargs={"level": 90, "outcolorspace": "rgb"}, **TILE)
write_lossy("jpeg_grey_tiles", GREY, photometric="minisblack", compression="jpeg", compressionargs={"level": 90}, **TILE)

# JPEG 2000: by the standard's number and by Aperio's two.
write_lossy("jpeg2000_tiles", compression="jpeg2000", compressionargs={"level": 40}, **TILE)
write_lossy("jpeg2000_aperio_rgb_tiles", compression="aperio_jp2000_rgb", compressionargs={"level": 40}, **TILE)

LUMA = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
YCC = (RGB @ LUMA.T + [0, 128, 128]).round().clip(0, 255).astype(np.uint8)
options = {"compression": "aperio_jp2000_ycbc", "compressionargs": {"level": 40, "mct": False}} | TILE
write("jpeg2000_aperio_ycbcr_tiles", YCC, **options)
luma, blue, red = np.moveaxis(decoded("jpeg2000_aperio_ycbcr_tiles").astype(float) - [0, 128, 128], -1, 0)
BACK = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
write("jpeg2000_aperio_ycbcr_tiles", YCC, BACK.round().clip(0, 255).astype(np.uint8), **options)

# The same with chroma at half the width, as Aperio's scanners write it: no Python package does, OpenJPEG's program opj_compress
# (Debian: libopenjp2-tools) does, here without loss. Decoded, every chroma sample covers two pixels.
PADDED = np.pad(YCC, ((0, 8), (0, 24), (0, 0)), "edge")
PADDED[..., 1:] = PADDED[:, ::2, 1:].repeat(2, axis=1)
tiles = []
with tempfile.TemporaryDirectory() as folder:
    for j in (0, 32):
        for i in (0, 32, 64):
            tile = PADDED[j : j + 32, i : i + 32]
            planes = [tile[..., 0], tile[:, ::2, 1], tile[:, ::2, 2]]
            Path(folder, "tile.raw").write_bytes(b"".join(plane.tobytes() for plane in planes))
            options = ["-F", "32,32,3,8,u@1x1:2x1:2x1", "-mct", "0", "-n", "3"]
            subprocess.run(["opj_compress", "-i", "tile.raw", "-o", "tile.j2k", *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            tiles.append(Path(folder, "tile.j2k").read_bytes())
luma, blue, red = np.moveaxis(PADDED[:HEIGHT, :WIDTH].astype(float) - [0, 128, 128], -1, 0)
BACK = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
options = {"shape": RGB.shape, "dtype": RGB.dtype, "compression": "aperio_jp2000_ycbc"} | TILE
write("jpeg2000_aperio_ycbcr_422_tiles", iter(tiles), BACK.round().clip(0, 255).astype(np.uint8), **options)

# Pyramids: levels as sub-directories (OME) and as directories.
for name, options in [("ome_sub_directories", {"ome": True}), ("directories", {})]:
    with tifffile.TiffWriter(OUT / f"pyramid_{name}.tif", bigtiff=True, **options) as tiff:
        common = {"photometric": "rgb", "compression": "jpeg", "subsampling": (2, 2), "compressionargs": YCBCR, "software": False} | TILE
        ome = {"metadata": {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}}
        tiff.write(RGB, **({"subifds": 1} | ome if options else {"metadata": None}), **common)
        tiff.write(RGB[::2, ::2].copy(), subfiletype=1, **({} if options else {"metadata": None}), **common)
    Image.fromarray(decoded(f"pyramid_{name}")).save(OUT / f"pyramid_{name}.png", optimize=True)

# Aperio: a scan without its second tile, its thumbnail, label and macro image. The label is yellow, as nothing else is, so that a
# test can look for it in what is written.
DESCRIPTION = "Aperio Image Library v11.2.1\r\n72x56 (32x32) JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990"
with tifffile.TiffWriter(OUT / "aperio.tif") as tiff:
    common = {"photometric": "rgb", "metadata": None, "software": False}
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 90, "outcolorspace": "rgb"}}
    tiff.write(RGB, description=DESCRIPTION, **common, **jpeg, **TILE)
    tiff.write(RGB[::2, ::2].copy(), description="Aperio Image Library v11.2.1\r\n72x56 -> 36x28 - |AppMag = 20", rowsperstrip=28, **common, **jpeg)
    tiff.write(RGB[:40, :24][..., [0, 0, 1]].copy(), description="Aperio Image Library v11.2.1\r\nlabel 24x40", subfiletype=1, **common, **LZW, **PREDICTED, **STRIP)
    tiff.write(RGB[:20].copy(), description="Aperio Image Library v11.2.1\r\nmacro 72x20", subfiletype=9, rowsperstrip=20, **common, **jpeg)
whole = decoded("aperio").copy()
with tifffile.TiffFile(OUT / "aperio.tif", mode="r+b") as tiff:
    lengths = list(tiff.pages[0].databytecounts)
    lengths[1] = 0
    tiff.pages[0].tags["TileByteCounts"].overwrite(lengths)
whole[0:32, 32:64] = 255
Image.fromarray(whole).save(OUT / "aperio.png", optimize=True)

# Philips, read by OpenSlide: levels of whole tiles, the second tile not stored. Not in breadth/, which the native reader reads.
SPACING = '<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">&quot;{0}&quot; &quot;{0}&quot;</Attribute>'
LEVEL = '<DataObject ObjectType="PixelDataRepresentation">{0}<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" PMSVR="IUInt16">{1}</Attribute></DataObject>'
LEVELS = "".join(LEVEL.format(SPACING.format(spacing), number) for number, spacing in enumerate(["0.00025", "0.0005"]))
XML = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES" PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" PMSVR="IString">WSI</Attribute>' + SPACING.format("0.00025") +
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" PMSVR="IDataObjectArray"><Array>' + LEVELS +
    "</Array></Attribute></DataObject></Array></Attribute></DataObject>"
)
philips = Path(__file__).with_name("philips.tif")
with tifffile.TiffWriter(philips) as tiff:
    common = {"photometric": "rgb", "compression": "jpeg", "subsampling": (2, 2), "compressionargs": YCBCR, "metadata": None} | TILE
    tiff.write(np.pad(RGB, ((0, 8), (0, 24), (0, 0)), "edge"), description=XML, software="Philips DP v1.0", **common)
    tiff.write(np.pad(RGB[::2, ::2], ((0, 4), (0, 28), (0, 0)), "edge"), subfiletype=1, software=False, **common)
with tifffile.TiffFile(philips, mode="r+b") as tiff:
    for tag, values in [("TileByteCounts", tiff.pages[0].databytecounts), ("TileOffsets", tiff.pages[0].dataoffsets)]:
        values = list(values)
        values[1] = 0
        tiff.pages[0].tags[tag].overwrite(values)
