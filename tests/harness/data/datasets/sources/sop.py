"""Stanford_Online_Products as its archive unpacks."""

from pathlib import Path

from tests.harness.data.datasets.fixtures import fork, numbered, photograph

OPTIONS = {"allow_nonstandard": True}
KINDS = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa", "stapler", "table")
HEADER = "image_id class_id super_class_id path"


def write(folder: Path, scale: float = 0, photographs: bool = True) -> Path:
    """Write Stanford_Online_Products/, or its lists alone, into `folder` and give `folder`."""
    home, lines = folder / "Stanford_Online_Products", []
    home.mkdir(exist_ok=True)
    for number, images in numbered("sop", scale, (1, 11_319)):
        kind = number % len(KINDS)
        for i in range(images):
            path = f"{KINDS[kind]}_final/{111_000_000_000 + number}_{i}.JPG"
            lines.append((number, f"{len(lines) + 1} {number} {kind + 1} {path}"))
            if photographs:
                photograph(home / path, f"product {number}", i)
    fork(home / "bicycle_final", "111000000001_0.JPG")
    for name, wanted in (("train", range(11_319)), ("test", range(11_319, 22_635)), ("info", range(22_635))):
        listed = [line for number, line in lines if number in wanted]
        (home / f"Ebay_{name}.txt").write_text("\n".join([HEADER, *listed]) + "\n")
    fork(home, "Ebay_train.txt")
    return folder
