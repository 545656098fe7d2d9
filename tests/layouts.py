"""Small copies of the official data sets, in their own formats."""

import csv
import json

import numpy as np
from PIL import Image
from scipy.io import savemat

DOGS = {1: "n02085620-Chihuahua", 2: "n02085782-Japanese_spaniel", 3: "n02099429-curly-coated_retriever"}
CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi S4 Sedan 2012"]
CAR_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")
VOC = "<annotation><size><width>{w}</width><height>{h}</height></size>{objects}</annotation>"
VOC_OBJECT = "<object><name>dog</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def write_photo(path, size=(40, 30), seed=0):
    """Write noise; the size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_class_folders(root):
    """Write two classes of six photos, a folder each, and return the root."""
    for name in ("finch", "wren"):
        for i in range(6):
            write_photo(root / name / f"{i}.png", seed=i + 10 * (name == "wren"))
    return root


def write_cub(root):
    """Write CUB-200-2011: three classes of eight photos, fifteen of them for training."""
    lines = {
        "images.txt": [],
        "image_class_labels.txt": [],
        "train_test_split.txt": [],
        "bounding_boxes.txt": [],
    }
    for i in range(24):
        relative = f"{i % 3 + 1:03d}.Bird/{i}.png"
        write_photo(root / "images" / relative, seed=i)
        rows = (relative, i % 3 + 1, int(i < 15), "4 5 10 12")
        for file, row in zip(lines, rows, strict=True):
            lines[file].append(f"{i} {row}\n")
    lines["classes.txt"] = [f"{i} {i:03d}.Bird\n" for i in (1, 2, 3)]
    for file, rows in lines.items():
        (root / file).write_text("".join(rows))


def cells(values):
    """Return a MATLAB cell array, one column."""
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


def structs(rows):
    """Return a MATLAB struct array, one row."""
    table = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        for name, value in row.items():
            table[name][0, i] = value
    return table


def write_dogs(root, *, train=5, test=2):
    """Write Stanford Dogs: three breeds, the second photo of each with two dogs, the third without annotation."""
    root.mkdir(parents=True, exist_ok=True)
    for split, count, start in (("train", train, 0), ("test", test, 100)):
        files, labels = [], []
        for class_id, folder in DOGS.items():
            for i in range(start, start + count):
                stem = f"{folder}/{folder.partition('-')[0]}_{i}"
                write_photo(root / "Images" / f"{stem}.jpg", seed=1000 * class_id + i)
                boxes = [(3, 4, 21, 18 + class_id)] + [(1, 2, 33, 29)] * (i == 1)
                if i != 2:
                    (root / "Annotation" / stem).parent.mkdir(parents=True, exist_ok=True)
                    objects = "".join(VOC_OBJECT.format(*box) for box in boxes)
                    (root / "Annotation" / stem).write_text(VOC.format(w=40, h=30, objects=objects))
                files.append(f"{stem}.jpg")
                labels.append(class_id)
        content = {
            "file_list": cells(files),
            "annotation_list": cells([file.removesuffix(".jpg") for file in files]),
            "labels": np.array(labels, dtype=np.float64).reshape(-1, 1),
        }
        savemat(root / f"{split}_list.mat", content)


def _car_rows(count):
    return [dict(zip(CAR_FIELDS, (2, 3, 30 + i % 4, 25, i % 3 + 1), strict=True)) for i in range(count)]


def write_cars_together(root, *, train=15, test=6):
    """Write Stanford Cars with one folder of photos."""
    rows = []
    for i, row in enumerate(_car_rows(train + test)):
        relative = f"car_ims/{i + 1:06d}.jpg"
        write_photo(root / relative, seed=i)
        rows.append({"relative_im_path": relative, **row, "test": int(i >= train)})
    savemat(root / "cars_annos.mat", {"annotations": structs(rows), "class_names": cells(CARS).T})


def write_cars_apart(root, *, train=15, test=6, labels=True):
    """Write Stanford Cars with a folder for each split."""
    (root / "devkit").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for i, row in enumerate(_car_rows(count)):
            write_photo(root / f"cars_{split}" / f"{i + 1:05d}.jpg", seed=i + 100 * (split == "test"))
            rows.append({**row, "fname": f"{i + 1:05d}.jpg"})
        bare = [{key: value for key, value in row.items() if key != "class"} for row in rows]
        given = rows if split == "train" else bare
        savemat(root / "devkit" / f"cars_{split}_annos.mat", {"annotations": structs(given)})
        if split == "test" and labels:
            savemat(root / "cars_test_annos_withlabels.mat", {"annotations": structs(rows)})
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells(CARS).T})


def manifest_rows(root, *, count=24):
    """Write photos and return the rows of a manifest about them; every fifth has no box."""
    rows = []
    for i in range(count):
        write_photo(root / "photos" / f"{i}.png", seed=i)
        row = {"path": f"photos/{i}.png", "label": ("wren", "robin", "finch")[i % 3]}
        row["split"] = "test" if i >= count - 6 else "train"
        row["box"] = None if i % 5 == 0 else [1.5, 2, 30, 20 + i % 3]
        rows.append(row)
    return rows


def write_manifest(path, rows):
    """Write rows as CSV or JSON Lines, as the suffix says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "x0", "y0", "x1", "y1"])
        for row in rows:
            writer.writerow([row["path"], row["label"], row["split"], *(row["box"] or [""] * 4)])
