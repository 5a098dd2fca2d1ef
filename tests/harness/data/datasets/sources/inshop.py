"""In-Shop Clothes as its parts unpack: Eval/ with the partition, Img/ with the photographs."""

from pathlib import Path

from tests.harness.data.datasets.fixtures import counts, fork, photograph

OPTIONS = {"allow_nonstandard": True}


def write(
    folder: Path,
    scale: float = 0,
    photographs: bool = True,
    home: str = "Inshop_Clothes/Img/img",
    list_in: str = "Inshop_Clothes/Eval",
) -> Path:
    """Write the photographs, or empty folders, into `home`, the partition into `list_in`, and give `folder`."""
    rows = []
    train, test = counts("inshop", 0, scale), counts("inshop", 1, scale)
    queries = round(sum(test) * 14_218 / 26_830) - len(test)  # one of each class, and these
    for number, images in enumerate(train + test, 1):
        kind = ("WOMEN/Dresses", "WOMEN/Blouses_Shirts", "MEN/Denim")[number % 3]
        asked = 0 if number <= len(train) else 1 + min(queries, images - 2)
        queries -= max(0, asked - 1)
        for i in range(images):
            path = f"{kind}/id_{number:08}/{i + 1:02}_{i % 7 + 1}_front.jpg"
            status = "train" if number <= len(train) else "query" if i < asked else "gallery"
            rows.append((f"img/{path}", f"id_{number:08}", status))
            if photographs:
                photograph(folder / home / path, f"garment {number}", i)
    (folder / home / "WOMEN").mkdir(parents=True, exist_ok=True)
    (folder / list_in).mkdir(parents=True, exist_ok=True)
    lines = [str(len(rows)), "image_name item_id evaluation_status"]
    lines += [f"{name:<72}{item} {status}" for name, item, status in rows]
    (folder / list_in / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    fork(folder / list_in, "list_eval_partition.txt")
    return folder
