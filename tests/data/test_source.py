import io
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, features
from torchvision.transforms import functional

import vdvae_repr as vr
from vdvae_repr.data.open import open_source
from vdvae_repr.data.sheet import save_picture
from vdvae_repr.data.source import Preprocessing, Source, about_enlarged, read_images
from vdvae_repr.errors import DataError
from vdvae_repr.pixels import TURNS, to_rgb

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


def tiff(values, bits, *tags, photometric=1):
    """An uncompressed grey TIFF of 8 x 8 pixels; further tags are (number, type, count, value)."""
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometric)]
    entries += [(273, 4, 1, 0), (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, len(values)), *tags]
    offset = 8 + 2 + 12 * len(entries) + 4
    packed = [
        struct.pack("<HHII", *(e[:3]), offset if e[0] == 273 else e[3]) for e in sorted(entries)
    ]
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(packed) + b"\0" * 4 + values


def grey_of(content):
    return np.asarray(to_rgb(Image.open(io.BytesIO(content))))[..., 0]


def saved(array, extension):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, extension)
    return buffer.getvalue()


def twelve_bits(values):
    """Pack 12-bit values two to three bytes, as TIFF does."""
    pairs = values.reshape(-1, 2).astype(np.uint16)
    high, low = pairs[:, 0], pairs[:, 1]
    return (
        np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1).astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize("factor", [1, 16, 257])
def test_sixteen_bits_are_scaled_by_their_depth(factor):
    """However bright the image is, 65535 is white."""
    values = GREY.astype(np.uint16) * factor
    expected = np.round(values / 257)
    for extension in ("PNG", "TIFF"):
        assert np.array_equal(grey_of(saved(values, extension)), expected)
    big_endian = b"P5 8 8 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(grey_of(big_endian), expected)


def test_a_tiff_whose_white_is_zero_is_no_negative():
    """PhotometricInterpretation 0 of TIFF 6.0, whatever the depth."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    eight = tiff(ramp.tobytes(), 8, photometric=0)
    sixteen = tiff((ramp.astype("<u2") * 257).tobytes(), 16, photometric=0)
    floating = tiff((ramp / 255).astype("<f4").tobytes(), 32, (339, 3, 1, 3), photometric=0)
    for content in (eight, sixteen, floating):
        assert np.array_equal(grey_of(content), 255 - ramp)


def png(values, colour, transparent):
    """A PNG of 16 bits, of which one value (or colour) is transparent, by its specification."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", np.array(transparent, ">u2").tobytes()))
    chunks += ((b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return chunked(chunks)


def chunked(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))
        for kind, held in chunks
    )


def test_what_a_png_of_16_bits_calls_transparent_is_white():
    values = np.array([[0, 0x6400], [0x6401, 0x8000]])
    assert grey_of(png(values, 0, [0x6400])).tolist() == [[0, 255], [100, 128]]
    values = np.stack([np.array([[0, 0x6400], [0x4000, 0x8000]])] * 3, -1)
    assert grey_of(png(values, 2, [0x6400] * 3)).tolist() == [[0, 255], [64, 128]]
    values = np.stack([np.array([[0x0040, 0x6400], [0x4000, 0x8000]])] * 3, -1)
    assert grey_of(png(values, 2, [0x0040] * 3)).tolist() == [[255, 100], [64, 128]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": np.array([0.5, 1.5])}, "expected labels of whole numbers"),
        ({"labels": np.array([np.nan, 1])}, "expected labels of whole numbers"),
        ({"labels": np.array(["a", "b"])}, "expected labels of whole numbers"),
        ({"labels": np.array([0, 2]), "label_names": ("a", "b")}, "from -1 to 1, .* found 2"),
        ({"labels": np.array([0, -2]), "label_names": ("a", "b")}, "from -1 to 1, .* found -2"),
        ({"labels": np.array([0, -2])}, "from 0, or -1 where there is none, found -2"),
        ({"labels": np.array([0, 1]), "splits": ("train",)}, "expected 2 splits, found 1"),
        ({"labels": np.array([0, 1]), "factors": {3: np.ones(2)}}, "texts, found 3 of type int; rename"),
        ({"labels": np.array([0, 1]), "factors": {(1, "a"): np.ones(2)}}, "texts, found .* of type tuple"),
        ({"labels": np.array([0, 1]), "factors": [np.ones(2)]}, "expected arrays by name, .* found list"),
    ],
)  # fmt: skip
def test_labels_splits_and_factors_that_no_store_keeps_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        Source(name="s", ids=("x", "y"), reader=lambda index: GREY, **given)


def test_grey_files_of_a_few_values_are_said(tmp_path, caplog):
    for folder, values in (("masks", GREY % 3), ("photos", GREY), ("black", GREY * 0)):
        (tmp_path / folder).mkdir()
        for name in "ab":
            Image.fromarray(values).save(tmp_path / folder / f"{name}.png")
        caplog.clear()
        assert len(read_images(open_source(tmp_path / folder), Preprocessing(size=8), [0, 1])) == 2
        said = [record.getMessage() for record in caplog.records]
        dark = "masks: a.png has 8-bit pixels, none above 2; 255 is read as white, so it is dark"
        black = "black: a.png is black everywhere"
        assert said == {"masks": [dark], "black": [black]}.get(folder, [])


def test_of_16_bits_that_pillow_cuts_to_0_and_of_what_is_transparent_the_cause_is_said(
    tmp_path, caplog
):
    """Pillow keeps the upper byte of a colour PNG of 16 bits."""
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint16)
    (tmp_path / "dim").mkdir()
    (tmp_path / "dim" / "a.png").write_bytes(png(values, 2, (65535, 65535, 65535)))
    (tmp_path / "clear").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "clear" / "a.png", transparency=0)
    for folder, said in (
        ("dim", "none above 4095; 65535 is read as white, so it is dark"),
        ("clear", "is transparent everywhere, so it is read as white"),
    ):
        caplog.clear()
        list(open_source(tmp_path / folder))
        (line,) = [record.getMessage() for record in caplog.records]
        assert said in line


def test_a_picture_of_our_own_among_the_images_is_said(tmp_path, caplog):
    """As a sheet that was written into the folder of the images."""
    Image.fromarray(GREY).save(tmp_path / "a.png")
    save_picture(np.stack([GREY] * 3, axis=2), tmp_path / "sheet.png")
    list(open_source(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "sheet.png is a picture that vdvae-repr made" in line


@pytest.mark.parametrize("as_array", [False, True])
def test_dark_images_of_a_reader_of_ones_own_are_said(caplog, as_array):
    values = np.stack([GREY % 3] * 3, axis=2)
    reader = (lambda index: values) if as_array else (lambda index: Image.fromarray(values))
    list(Source(name="own", ids=("a", "b"), reader=reader, labels=[0, 1]))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "own: a has 8-bit pixels, none above 2; 255 is read as white, so it is dark" in line


@pytest.mark.parametrize("colour", [0, 2])
@pytest.mark.parametrize(("bits", "count"), [(13, 1), (14, 1), (15, 1), (16, 0)])
def test_images_that_all_have_fewer_bits_than_16_are_said_once(
    tmp_path, caplog, colour, bits, count
):
    shape = (8, 9, 3) if colour else (8, 9)
    for index in range(7):
        values = np.random.default_rng(index).integers(
            2 ** (bits - 1), 2**bits, shape, dtype=np.uint16
        )
        clear = (1, 1, 1) if colour else (1,)
        (tmp_path / f"{index}.png").write_bytes(png(values, colour, clear))
    list(open_source(tmp_path))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == count
    assert all("has 16-bit pixels, as 4 others have, none above " in line for line in said)


def test_an_image_in_two_formats_is_said(tmp_path):
    for name in ("x.png", "x.jpg", "y.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    (notice,) = open_source(tmp_path).notices
    assert notice.startswith(
        "1 image is called as another but for the extension, as x.jpg and x.png"
    )


def test_labels_without_names_are_called_by_their_numbers():
    labels = np.array([7, -1, 20, 7])
    source = Source(name="s", ids=tuple("abcd"), reader=lambda index: GREY, labels=labels)
    called = [None if k < 0 else source.label_names[k] for k in source.labels]
    assert called == ["7", None, "20", "7"]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_what_a_grey_png_of_few_bits_calls_transparent_is_white(bits):
    """Of a value of `bits` bits alone: PNG specification, tRNS."""
    values = np.arange(min(8, 2**bits))
    packed = np.packbits(
        np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :].ravel()
    )
    header = struct.pack(">IIBBBBB", len(values), 1, bits, 0, 0, 0, 0)
    for clear in values:
        expected = np.where(values == clear, 255, values * 255 // (2**bits - 1))
        chunks = [(b"IHDR", header), (b"tRNS", struct.pack(">H", clear))]
        chunks += [(b"IDAT", zlib.compress(b"\0" + packed.tobytes())), (b"IEND", b"")]
        assert grey_of(chunked(chunks)).tolist() == [expected.tolist()]


def test_a_pgm_says_what_is_white():
    """Its header has the largest value; Pillow scales by it."""
    values = GREY.astype(np.uint16) * 16
    pgm = b"P5 8 8 4095\n" + values.astype(">u2").tobytes()
    assert np.abs(grey_of(pgm) - values * (255 / 4095)).max() < 0.51


def test_twelve_bits_of_a_tiff():
    values = GREY.astype(np.uint16) * 16
    assert np.array_equal(grey_of(tiff(twelve_bits(values), 12)), np.round(values * (255 / 4095)))


def test_floating_point_from_0_to_1():
    assert np.array_equal(grey_of(saved((GREY / 255).astype(np.float32), "TIFF")), GREY)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((8, 8), np.nan, np.float32), "expected finite pixels, found NaN"),
        (np.full((8, 8), np.inf, np.float32), "expected finite pixels"),
        (GREY.astype(np.float32), "from 0 to 1, found 0 to 255|from 0 to 1, found [0-9]"),
        (GREY.astype(np.float32) / -255, "from 0 to 1, found -0"),
        (GREY.astype(np.int32), "found whole numbers of 32 bits"),
    ],
)
def test_pixels_of_unknown_scale_are_refused(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "a.tif")
    source = open_source(tmp_path)
    with pytest.raises(DataError, match=f"a.tif: .*({message})") as caught:
        read_images(source, Preprocessing(size=8), [0])
    assert "\n" not in str(caught.value)


def test_a_12_bit_image_in_16_bits_is_said_once(tmp_path, caplog):
    for name in ("a", "b"):
        Image.fromarray(GREY.astype(np.uint16) * 16).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path)
    read_images(source, Preprocessing(size=8), [0, 1])
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"{tmp_path.name}: a.png has 16-bit pixels"
    ]


def test_12_bits_in_16_of_a_colour_image_are_said(tmp_path, caplog):
    colour = np.stack([GREY.astype(np.uint16) * 16] * 3, -1)
    (tmp_path / "a.png").write_bytes(png(colour, 2, [1, 1, 1]))
    source = open_source(tmp_path)
    assert max(high for _, high in source[0].getextrema()) < 16
    (record,) = caplog.records
    assert "a.png has 16-bit pixels, none above 4095" in record.getMessage()


def test_a_tiff_of_signed_numbers_is_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo={339: 2})
    (tmp_path / "b.tif").write_bytes(tiff(GREY.astype("<i2").tobytes(), 16, (339, 3, 1, 2)))
    source = open_source(tmp_path)
    for row, name in enumerate(("a.tif", "b.tif")):
        with pytest.raises(DataError, match=f"{name}: expected pixels from 0"):
            source.load(row)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_floating_point_with_the_highest_byte_first_is_read_or_refused(tmp_path, compression):
    """Compressed, Pillow gives it back with its bytes turned."""
    values = (np.arange(64, dtype=np.float32).reshape(8, 8)) / 64
    content = values.astype(">f4").tobytes()
    content = content if compression is None else zlib.compress(content)
    tags = {256: 8, 257: 8, 258: 32, 259: 1 if compression is None else 8, 262: 1, 277: 1, 278: 8}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 279: len(content), 339: 3}
    packed = b"".join(struct.pack(">HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    (tmp_path / "a.tif").write_bytes(
        b"MM\0*" + struct.pack(">IH", 8, 10) + packed + bytes(4) + content
    )
    source = open_source(tmp_path)
    if compression is None:
        assert np.array_equal(source.load(0), values)
    else:
        with pytest.raises(DataError, match=r"a.tif: .* highest first, which Pillow misreads"):
            source.load(0)


def test_a_tiff_of_another_kind_of_pixels_is_said_to_be_a_tiff(tmp_path):
    floating = tiff((GREY / 255).astype("<f8").tobytes(), 64, (339, 3, 1, 3))
    (tmp_path / "a.tif").write_bytes(floating)
    with pytest.raises(DataError, match=r"a.tif: .* a TIFF .* whose kind of pixels is not read"):
        open_source(tmp_path).load(0)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ("P4 9 8", 16),
        ("P5 9 8 255", 72),
        ("P5 9 8 4095", 144),
        ("P5 9 8 65535", 144),
        ("P6 9 8 100", 216),
    ],
)
def test_of_several_pictures_in_a_netpbm_file_the_first_is_read_and_that_is_said(
    tmp_path, caplog, head, size
):
    """The sizes are those of the Netpbm manual."""
    one = head.encode() + b"\n" + b"P5 " * (size // 3) + b"\0" * (size % 3)
    (tmp_path / "a.pnm").write_bytes(one)
    (tmp_path / "b.pnm").write_bytes(one + b"\n" + one)
    source = open_source(tmp_path)
    first, same = (np.asarray(to_rgb(source[i])) for i in (0, 1))
    assert first.shape == (8, 9, 3)
    assert np.array_equal(first, same)
    (line,) = [r.getMessage() for r in caplog.records if "several pictures" in r.getMessage()]
    assert "b.pnm holds several pictures, of which the first is read" in line


@pytest.mark.parametrize("kind", ["avif", "gif", "png", "tif", "webp"])
def test_of_several_pictures_in_a_file_the_first_is_read_and_that_is_said(tmp_path, caplog, kind):
    pictures = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (50, 100, 200)]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:])
    pictures[1].save(tmp_path / f"b.{kind}")
    source = open_source(tmp_path)
    assert [int(np.asarray(to_rgb(image)).max()) for image in source] == [50, 100]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.name}: a.{kind} holds several pictures, of which the first is read"
    ]


def coloured_tiff(values, *, photometric=2, apart=False, extra=(), colors=()):
    """A TIFF of (H, W, C), without Pillow, which writes no channels apart.

    `extra` are its ExtraSamples, `colors` its ColorMap.
    """
    height, width, channels = values.shape
    pixels = (values.transpose(2, 0, 1) if apart else values).tobytes()
    strips = channels if apart else 1
    tags = [(256, width), (257, height), (259, 1), (262, photometric), (277, channels)]
    tags += [(278, height), (284, 1 + apart)]
    tables = {258: [8 * values.itemsize] * channels, 279: [len(pixels) // strips] * strips}
    place = 8 + 2 + 12 * (len(tags) + 3 + bool(extra) + bool(colors)) + 4
    after = place + 4 * (channels + 2 * strips + len(extra) + len(colors))
    tables[273] = [after + n * (len(pixels) // strips) for n in range(strips)]
    tables |= ({338: list(extra)} if extra else {}) | ({320: list(colors)} if colors else {})
    entries = [(tag, struct.pack("<HHII", tag, 4, 1, value)) for tag, value in tags]
    body = b""
    for tag, numbers in tables.items():
        alone = len(numbers) == 1
        value = numbers[0] if alone else place + len(body)
        entries.append((tag, struct.pack("<HHII", tag, 4, len(numbers), value)))
        body += b"\0" * 4 if alone else struct.pack(f"<{len(numbers)}I", *numbers)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entry for _, entry in sorted(entries)) + b"\0" * 4 + body + pixels


@pytest.mark.parametrize("factor", [1, 257])
def test_colours_of_a_tiff_that_are_written_with_8_bits_are_read_as_those_of_16(tmp_path, factor):
    """By hand: value v has the colour (v, 255 - v, 7). The standard asks for 16 bits."""
    numbers = np.random.default_rng(0).integers(0, 256, (5, 6, 1), dtype=np.uint8)
    colors = [*range(256), *range(255, -1, -1), *[7] * 256]
    content = coloured_tiff(numbers, photometric=3, colors=[factor * c for c in colors])
    (tmp_path / "a.tif").write_bytes(content)
    image = np.asarray(to_rgb(open_source(tmp_path)[0]))
    assert np.array_equal(image, np.concatenate([numbers, 255 - numbers, numbers * 0 + 7], axis=2))


@pytest.mark.parametrize(
    ("photometric", "dtype"), [(2, np.uint8), (2, np.uint16), (5, np.uint16), (8, np.uint8)]
)
def test_channels_apart_are_read_right_or_refused(tmp_path, photometric, dtype):
    """A TIFF's PlanarConfiguration 2 holds what 1 holds."""
    channels = 4 if photometric == 5 else 3
    values = np.random.default_rng(0).integers(0, 256, (5, 6, channels))
    values = (values * (257 if dtype == np.uint16 else 1)).astype(dtype)
    for apart in (False, True):
        content = coloured_tiff(values, photometric=photometric, apart=apart)
        (tmp_path / f"{apart:d}.tif").write_bytes(content)
    together, apart = open_source(tmp_path), open_source(tmp_path, rows=[1])
    expected = np.asarray(to_rgb(together[0]))
    if photometric == 2:
        np.testing.assert_array_equal(expected, values >> 8 if dtype == np.uint16 else values)
    if (photometric, dtype) == (2, np.uint8):
        np.testing.assert_array_equal(np.asarray(to_rgb(apart[0])), expected)
    else:
        with pytest.raises(DataError, match=r"1.tif: .*PlanarConfiguration 1$"):
            apart.load(0)


def test_channels_that_are_left_out_are_said(tmp_path, caplog):
    """As the near infrared beside red, green and blue; ExtraSamples 0 is no alpha, 2 is."""
    values = np.full((4, 4, 4), 100, np.uint8)
    for name, extra in (("infrared", 0), ("alpha", 2)):
        (tmp_path / f"{name}.tif").write_bytes(coloured_tiff(values, extra=[extra]))
        values[..., 3] = 200
    source = open_source(tmp_path)
    assert [int(np.asarray(to_rgb(image)).max()) for image in source] == [133, 100]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.name}: infrared.tif has 4 channels, of which the first 3 are read"
    ]


@pytest.mark.parametrize("photometric", [1, 2])
def test_a_tiff_whose_colours_are_multiplied_by_their_opacity_is_laid_over_white(
    tmp_path, caplog, photometric
):
    """ExtraSamples 1 of TIFF 6.0: over white is what is held, plus the white that shows through."""
    rng = np.random.default_rng(0)
    alpha = rng.choice([0, 128, 255], (8, 9, 1)).astype(np.uint8)
    grey = rng.integers(0, 256, (8, 9, 1)) * alpha // 255
    channels = 1 if photometric == 1 else 3
    values = np.concatenate([grey.repeat(channels, 2), alpha], 2).astype(np.uint8)
    (tmp_path / "1.tif").write_bytes(coloured_tiff(values, photometric=photometric, extra=[1]))
    clear = np.zeros_like(values)
    (tmp_path / "2.tif").write_bytes(coloured_tiff(clear, photometric=photometric, extra=[1]))
    source = open_source(tmp_path)
    read = [np.asarray(to_rgb(image)).astype(int) for image in source]
    expected = (grey + (255 - alpha.astype(int))).repeat(3, 2)
    np.testing.assert_allclose(read[0], expected, atol=2)
    assert (read[1] == 255).all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("2.tif is transparent everywhere, so it is read as white")


def test_pixels_in_memory_that_are_multiplied_by_their_opacity_are_laid_over_white():
    image = Image.new("RGBA", (4, 4), (200, 100, 0, 128))
    assert np.array_equal(np.asarray(to_rgb(image.convert("RGBa"))), np.asarray(to_rgb(image)))


def test_an_image_that_is_transparent_everywhere_is_said_once(tmp_path, caplog):
    """As of a renderer or a TGA that writes no alpha, but keeps room for it."""
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "some.png")
    pixels[..., 3] = 0
    for name in ("all.png", "none.tga"):
        Image.fromarray(pixels).save(tmp_path / name)
    assert len([source.load(i) for source in [open_source(tmp_path)] for i in range(3)]) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path.name}: all.png is transparent everywhere, so it is read as white"
    ]


PALE = np.dstack([np.full((4, 4, 3), 100, np.uint8), np.eye(4, dtype=np.uint8)])


@pytest.mark.parametrize("opacity", [1, 2, 127, 128, 255])
def test_opacity_below_half_everywhere_is_said_of_files_and_arrays(opacity, tmp_path, caplog):
    """As of a mask that is saved as 0 and 1."""
    pixels = PALE.copy()
    pixels[..., 3] *= opacity
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(pixels[..., 2:]).save(tmp_path / "grey.png")
    grey = open_source(tmp_path, rows=[2])
    arrays = Source(
        name="s", ids=("a", "b"), reader=[pixels, pixels].__getitem__, labels=np.arange(2)
    )
    for source in (open_source(tmp_path), grey, arrays):
        caplog.clear()
        for row in range(min(2, len(source))):
            source.load(row)
        line = (
            f"{source.name}: {source.ids[0]} has no opacity above {opacity} of 255, so white shows"
        )
        said = [record.getMessage() for record in caplog.records]
        assert [text.startswith(line) for text in said] == [True] * (opacity < 128)


@pytest.mark.parametrize(
    ("mode", "color", "clear", "opacity"),
    [
        ("P", 3, 3, 0), ("P", 3, 2, 255), ("P", 2, bytes([0, 255, 9]), 9), ("P", 5, bytes(3), 255),
        ("L", 7, 7, 0), ("L", 7, 8, 255), ("RGB", (1, 2, 3), (1, 2, 3), 0),
        ("RGB", (1, 2, 3), (1, 2, 2), 255), ("1", 1, 1, 0), ("I;16", 700, 700, 0), ("I;16", 700, 701, 255),
    ],
)  # fmt: skip
def test_opacity_by_a_palette_or_a_color_is_said_too(mode, color, clear, opacity, tmp_path, caplog):
    image = Image.new(mode, (4, 4), color)
    if mode == "P":
        image.putpalette(list(range(90)))
    image.save(tmp_path / "a.png", transparency=clear)
    source = open_source(tmp_path)
    if mode != "I;16":  # of which Pillow makes no RGBA
        with Image.open(tmp_path / "a.png") as read:
            assert read.convert("RGBA").getchannel("A").getextrema() == (opacity, opacity)
    source.load(0)
    said = [
        r.getMessage()
        for r in caplog.records
        if "white" in r.getMessage() and "dark" not in r.getMessage()
    ]
    assert len(said) == (opacity < 128)
    assert all(("everywhere, so it" in line) == (opacity == 0) for line in said)


def test_an_image_that_is_not_readable_is_named_once_whatever_its_name(tmp_path):
    (tmp_path / "ju\nnk.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refusal:
        read_images(open_source(tmp_path), Preprocessing(size=4), [0])
    assert str(refusal.value).count("nk.png") == 1


def test_pixels_of_a_reader_that_are_transparent_everywhere_are_said_once(caplog):
    some = np.full((4, 4, 4), 200, np.uint8)
    none = some.copy()
    none[..., 3] = 0
    rows = [some, none, none]
    source = Source(name="s", ids=tuple("abc"), reader=rows.__getitem__, labels=np.arange(3))
    for row in range(3):
        source.load(row)
    assert [record.getMessage() for record in caplog.records] == [
        "s: b is transparent everywhere, so it is read as white"
    ]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, "x"], "found 1, of type int"),
        ([1.0, None], "found None, of type NoneType"),
        (["x", None], "found None, of type NoneType"),
    ],
)
def test_factors_of_numbers_and_others_are_refused_in_a_line(values, found):
    given = {"f": np.array(values, object)}
    with pytest.raises(
        DataError, match=f"factor 'f': expected numbers alone, or texts alone, {found}"
    ):
        Source(name="s", ids=("a", "b"), reader=None, labels=[0, 1], factors=given)


def test_names_of_labels_may_be_a_column():
    names = pd.Series(["x", "y"], index=[1, 0])
    source = Source(name="s", ids=("a", "b"), reader=None, labels=[0, 1], label_names=names)
    assert source.label_names == ("x", "y")


def exif(*entries):
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4


@pytest.mark.parametrize(
    "tags",
    [
        exif((0x112, 3, 1, b"\6\0\0\0"), (0x128, 2, 2, b"2\0\0\0")),
        exif((0x112, 3, 1, b"\6\0\0\0"), (0x11A, 2, 3, b"72\0\0")),
        exif((0x112, 1, 1, b"\6\0\0\0")),
        exif((0x112, 4, 1, b"\6\0\0\0"), (0x8769, 2, 2, b"x\0\0\0")),
    ],
)
def test_orientation_is_told_beside_tags_of_a_wrong_type(tags):
    """Number 6 is a quarter turn clockwise (EXIF 2.3): what lies on the left comes to the top."""
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", exif=tags)
    turned = np.asarray(to_rgb(Image.open(buffer)))
    assert turned[:8].min() > 200
    assert turned[8:].max() < 50


def test_an_orientation_that_cannot_be_told_leaves_the_image():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "PNG")
    for tags in (
        exif((0x112, 2, 2, b"x\0\0\0")),
        exif((0x112, 3, 1, b"\x63\0\0\0")),
        b"Exif\0\0rubbish",
    ):
        buffer = io.BytesIO()
        Image.fromarray(GREY).save(buffer, "PNG", exif=tags)
        assert np.array_equal(np.asarray(to_rgb(Image.open(buffer)))[..., 0], GREY)


@pytest.mark.parametrize(("resize", "mode"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC")])
@pytest.mark.parametrize("side", [100, 40, 64])
def test_resizing_is_torchvisions(resize, mode, side):
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    )
    expected = functional.resize(image, [64, 64], getattr(functional.InterpolationMode, mode))
    assert np.array_equal(Preprocessing(size=64, resize=resize)(image), np.asarray(expected))


def test_what_is_recorded_of_resizing():
    """Stores of the default stay the same; another way to resize is another store."""
    assert Preprocessing(size=64).to_json() == {
        "crop": None,
        "size": 64,
        "resize": "bicubic, antialiased",
    }
    assert Preprocessing(size=64, resize="bilinear").to_json()["resize"] == "bilinear, antialiased"
    with pytest.raises(DataError, match="expected bicubic or bilinear, found 'nearest'"):
        Preprocessing(size=64, resize="nearest")


def write(folder, count=6):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    return open_source(folder)


def test_a_source_is_a_torch_data_set(tmp_path):
    source = write(tmp_path)
    assert isinstance(source, torch.utils.data.Dataset)
    assert isinstance(source[0], Image.Image)
    assert [image.getpixel((0, 0))[0] for image in source] == [0, 10, 20, 30, 40, 50]
    assert source[-1].getpixel((0, 0))[0] == 50
    with pytest.raises(IndexError, match="expected an index below 6, found 6"):
        source[6]
    array = open_source(np.full((2, 8, 8), 7, np.uint8))[1]
    assert (array.mode, array.getpixel((0, 0))) == ("L", 7)


def test_a_source_goes_to_other_processes(tmp_path):
    source = write(tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint()
    assert np.array_equal(np.asarray(again[3]), np.asarray(source[3]))


def test_threads_read_at_once(tmp_path):
    source = write(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: np.asarray(source.load(i % 6))[0, 0, 0], range(240)))
    assert found == [10 * (i % 6) for i in range(240)]


def test_any_error_of_a_reader_names_the_image():
    def broken(index):
        raise struct.error("unpack requires a buffer of 4 bytes")

    source = Source(name="s", ids=("x.jpg",), reader=broken, labels=np.array([-1]))
    with pytest.raises(DataError, match=r"x.jpg: expected a readable image, .*unpack requires"):
        read_images(source, Preprocessing(size=8), [0])


def test_a_pointer_in_place_of_an_image_is_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match=r"a.png: .*\(it is a Git LFS pointer"):
        open_source(tmp_path)[0]


def test_more_pixels_can_be_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    write(tmp_path, 1)
    with pytest.raises(DataError, match=r"more than 50 pixels; refused.*set VDVAE_REPR_MAX_PIXELS"):
        open_source(tmp_path)[0]
    monkeypatch.setenv("VDVAE_REPR_MAX_PIXELS", "64")
    assert open_source(tmp_path)[0].size == (8, 8)
    monkeypatch.setenv("VDVAE_REPR_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="VDVAE_REPR_MAX_PIXELS: expected a number"):
        open_source(tmp_path)


def test_a_checksum_is_of_the_file_and_of_the_pixels_where_there_is_none(tmp_path):
    source = write(tmp_path)
    assert source.checksums_are_of == source.select([4, 1]).checksums_are_of == "files"
    some, kept = source.select([4, 1]).with_checksums()
    assert kept.tolist() == [0, 0]
    some.load(0)
    assert kept.tolist() == [source.checksum(4), 0]
    assert len({source.checksum(i) for i in range(6)}) == 6
    array = Source(
        name="a", ids=("x",), reader=lambda i: np.full((2, 2, 3), 7, np.uint8), labels=np.zeros(1)
    )
    assert (array.checksums_are_of, array.state()) == ("pixels", None)
    content = bytes([7] * 12)
    assert array.checksum(0) == zlib.crc32(content) << 32 | 12


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("JPEG2000", {}),
        ("TIFF", {"compression": "tiff_lzw", "strip_size": 2**20}),
    ],
)
def test_zeros_where_an_image_should_end_are_damage(tmp_path, kind, options):
    """Of a copy that broke off, decoders make grey or black pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    whole = buffer.getvalue()
    few = {"JPEG": 16, "PNG": 16, "TIFF": 128}.get(kind, 2048)
    for number, zeros in enumerate((len(whole) // 2, few)):
        (tmp_path / f"{number}.png").write_bytes(whole[:-zeros] + bytes(zeros))
    (tmp_path / "padded.png").write_bytes(whole + bytes(2048))
    source = open_source(tmp_path)
    for number in range(2):
        with pytest.raises(DataError, match=f"{number}.png: expected a readable image"):
            source.load(number)
    assert source[2].size == (96, 96)


def test_what_phones_and_programs_append_is_no_damage(tmp_path):
    """A trailer behind a photo's end, padded; EXIF of zeros behind the pixels; a padded AVIF."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    film = b"ftypmp42 \xff\xda of a motion photo"
    kinds = {"a.jpg": "JPEG", "b.png": "PNG", "c.webp": "WEBP", "d.avif": "AVIF"}
    for name, kind in kinds.items():
        if kind == "AVIF" and not features.check("avif"):
            continue
        exif = {"exif": b"Exif\0\0II*\0" + bytes(3000)} if kind == "WEBP" else {}
        buffer = io.BytesIO()
        noise.save(buffer, kind, **exif)
        tail = film if kind in ("JPEG", "PNG") else b""
        (tmp_path / name).write_bytes(buffer.getvalue() + tail + bytes(2048))
    source = open_source(tmp_path)
    assert {source[i].size for i in range(len(source))} == {(64, 64)}


def test_a_file_of_any_length_takes_little_memory(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match=r"a\.jpg.* 1,099,511,627,776 bytes"):
        open_source(tmp_path).load(0)


def test_an_image_of_one_colour_is_whole(tmp_path):
    """Its scan may be nothing but zeros, up to the mark of its end."""
    Image.new("RGB", (1000, 1000), (9, 9, 9)).save(tmp_path / "a.jpg", optimize=True)
    assert open_source(tmp_path)[0].getpixel((5, 5)) == (9, 9, 9)


def read_by(reader):
    return Source(name="s", ids=tuple("abcd"), reader=reader, labels=np.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (np.zeros((16, 16, 3)), r"ndarray float64 \(16, 16, 3\)"),
        (np.zeros((3, 16, 16), np.uint8), r"ndarray uint8 \(3, 16, 16\)"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), r"Tensor uint8 \(16, 16, 3\)"),
        (np.zeros((1, 16, 16, 3), np.uint8), r"ndarray uint8 \(1, 16, 16, 3\)"),
        (None, "NoneType"),
        (np.ma.masked_array(np.zeros((2, 2), np.uint8), mask=True), "a masked array"),
    ],
)
def test_a_reader_that_gives_no_image_is_told_what_to_give(given, found):
    with pytest.raises(DataError, match=rf"^b: expected (a PIL image or .*|pixels,) found {found}"):
        read_by(lambda index: given)[1]


def test_what_a_mask_hides_of_labels_and_factors_is_refused():
    hidden = np.ma.masked_array([0, 1, 2, 3], mask=[0, 0, 0, 1])
    for given in ({"labels": hidden}, {"factors": {"age": hidden}}):
        with pytest.raises(DataError, match="found a masked array, 1 values of which are hidden"):
            Source(
                **(
                    {"name": "s", "ids": tuple("abcd"), "reader": None, "labels": np.arange(4)}
                    | given
                )
            )


def test_some_images_are_selected_by_number_or_by_a_mask():
    source = read_by(lambda index: np.full((2, 2), index, np.uint8))
    for rows in ([1, 3], np.array([False, True, False, True]), [1, -1]):
        assert source.select(rows).ids == ("b", "d")
        assert source.select(rows)[1].getpixel((0, 0)) == 3
    for rows in ([3.7], [True, False], ["b"], [[0]], [4], [-5], 2):
        with pytest.raises(DataError, match=r"^s: (rows: )?expected .*found"):
            source.select(rows)
    with pytest.raises(TypeError, match=r"source\.select takes several"):
        source[0:2]


DARK = np.random.default_rng(3).integers(0, 12, (8, 8, 4)).astype(np.uint8) + 1
DIM = DARK.astype(np.uint16) * 300


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"P5 8 8 65535\n" + DIM[..., 0].astype(">u2").tobytes(), "16-bit pixels, none above"),
        (b"P6 8 8 65535\n" + DIM[..., :3].astype(">u2").tobytes(), "16-bit pixels, none above"),
        (png(np.dstack([DIM[..., :3], np.full((8, 8), 65535)]), 6, []), "16-bit pixels"),
        (png(np.dstack([DIM[..., 0], np.full((8, 8), 65535)]), 4, []), "16-bit pixels"),
        (saved(DARK[..., :3], "PNG"), "8-bit pixels, none above 12"),
        (saved(np.dstack([DARK[..., :3], np.full((8, 8), 255, np.uint8)]), "PNG"), "8-bit pixels"),
        (b"P6 8 8 4095\n" + DIM[..., :3].astype(">u2").tobytes(), ""),
        (b"P5 8 8 65535\n" + (DIM[..., 0] * 10).astype(">u2").tobytes(), ""),
        (
            saved(np.dstack([DARK[..., :3], DARK[..., 3] * 20]), "PNG"),
            "",
        ),  # seen through, over white
    ],
)
def test_dark_files_of_any_mode_are_said(content, what, tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(content)
    open_source(tmp_path).load(0)
    said = [r.getMessage() for r in caplog.records]
    assert (len(said) == 1 and what in said[0]) if what else said == []


@pytest.mark.parametrize("format", ["TIFF", "PPM"])
@pytest.mark.parametrize(("high", "said"), [(0.001, True), (0.06, True), (0.07, False), (0, False)])
def test_dark_files_of_floating_point_are_said(format, high, said, tmp_path, caplog):
    """12 bits divided by 65535 end at 0.0625."""
    values = np.linspace(0, high, 64, dtype=np.float32).reshape(8, 8)
    content = io.BytesIO()
    Image.fromarray(values).save(content, format)
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(content.getvalue())
    source = open_source(tmp_path)
    assert int(np.asarray(to_rgb(source.load(0))).max()) == round(255 * high)
    source.load(1)
    line = f"a.tif has floating-point pixels, none above {high:.2g}; 1.0 is read as white, so it is dark"
    found = [record.getMessage() for record in caplog.records]
    assert (len(found) == 1 and line in found[0]) if said else found == []


@pytest.mark.parametrize(
    (
        "lab",
        "rgb",
    ),  # by the formulas of CIELAB with white D50 and sRGB, adapted by Bradford's matrix
    [
        ((255, 0, 0), (0, 255, 255)),
        ((128, 140, 100), (121, 114, 167)),
        ((200, 128, 128), (194, 194, 194)),
        ((150, 160, 150), (201, 118, 105)),
    ],
)
def test_cielab_is_read_as_its_colours_and_never_said_to_be_transparent(lab, rgb, tmp_path, caplog):
    Image.new("LAB", (8, 8), lab).save(tmp_path / "a.tif")
    read = np.asarray(to_rgb(open_source(tmp_path).load(0)))
    np.testing.assert_allclose(read, np.broadcast_to(rgb, (8, 8, 3)), atol=1)
    assert not caplog.records


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_tiff_that_is_no_square_is_turned_whole(orientation, tmp_path):
    pixels = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    upright = np.asarray(Image.fromarray(pixels).transpose(TURNS[orientation]))
    read = np.asarray(to_rgb(open_source(tmp_path).load(0)))[..., 0]
    assert np.array_equal(read, upright)


def test_columns_of_a_table_are_taken_by_position_and_splits_by_their_words():
    shuffled = pd.DataFrame({"age": [10, 20, 30, 40], "split": ["train", "valid", "dev", "test"]})
    shuffled.index = [3, 2, 1, 0]
    source = Source(
        name="s",
        ids=pd.Series(list("abcd"), index=[3, 2, 1, 0]),
        reader=lambda index: np.full((2, 2), index, np.uint8),
        labels=np.zeros(4, np.int64),
        splits=shuffled["split"],
        factors={"age": shuffled["age"]},
    )
    assert source.splits == ("train", "val", "val", "test")
    assert source.select([1, 0]).factors["age"].tolist() == [20, 10]


def test_images_that_are_enlarged_much_are_counted(tiny, tmp_path, caplog):
    """Of 12 images 3 are 8x8 and 8x6 where the model takes 16x16; of a crop of 8 all are."""
    sides = [(8, 8), (8, 8), (8, 6)] + [(9, 9)] * 9
    (tmp_path / "few").mkdir()
    for number, side in enumerate(sides):
        Image.new("RGB", side, (number, 99, 9)).save(tmp_path / "few" / f"{number:02d}.png")
    said = []
    vr.extract(tiny, tmp_path / "few", tmp_path / "s.h5", layers="1x1", report=said.append)
    line = "few: 3 of 12 images are enlarged to 16 pixels a side, from 6 to 8"
    assert any(text.endswith(line) for text in said)
    vr.evaluate(tiny, tmp_path / "few", resize="bilinear")
    assert any(text.endswith(line) for text in caplog.messages)
    assert "12 of 12 images are enlarged to 16 pixels a side, from 6 to 8" in about_enlarged(
        vr.open_source(tmp_path / "few"), 16, crop=8
    )
    many = vr.open_source(np.zeros((1000, 16, 16, 3), np.uint8))
    assert about_enlarged(many, 31) == ""
    assert "100 of 100 images looked at are enlarged to 32" in about_enlarged(many, 32)


def test_sizes_of_images_of_a_reader_of_the_users_are_not_looked_at():
    read = []
    source = vr.Source(name="own", ids=("a", "b"), reader=read.append, labels=[-1] * 2)
    assert about_enlarged(source, 16) == about_enlarged(source.select([1]), 16) == ""
    assert read == []


def test_sizes_of_named_data_and_of_selections_are_looked_at():
    digits = vr.open_source("digits")
    assert "100 of 100 images looked at are enlarged to 64" in about_enlarged(digits, 64)
    assert "8 of 8 images are" in about_enlarged(digits.select(range(8)), 64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", {"a", "b"}),
        ("ids", "ab"),
        ("labels", {0, 1}),
        ("splits", {"train", "test"}),
        ("label_names", {"x", "y"}),
    ],
)
def test_what_has_no_order_is_of_no_image(name, value):
    parts = {"ids": ("a", "b"), "labels": [0, 1], "splits": (), "label_names": ()} | {name: value}
    with pytest.raises(DataError, match=f"x: {name}: expected .*(in order, found set|found 'ab')"):
        Source(name="x", reader=lambda index: None, **parts)


def test_class_names_of_several_lines_are_refused_wherever_they_stand(tmp_path):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    (tmp_path / "f" / "a\nb").mkdir(parents=True)
    Image.fromarray(images[0]).save(tmp_path / "f" / "a\nb" / "0.png")
    np.savez(tmp_path / "l.npz", images=images, labels=["a\nb", "a"])
    np.savez(tmp_path / "n.npz", images=images, labels=[0, 1], class_names=["a\rb", "a"])
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["images"], file["labels"] = images, ["a\nb", "a"]
    for name in ("f", "l.npz", "n.npz", "l.h5"):
        with pytest.raises(
            DataError, match=r"names of labels: expected each on one line, found 'a"
        ):
            open_source(tmp_path / name)
