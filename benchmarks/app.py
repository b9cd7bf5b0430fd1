"""Processor time that the page of `layerlock app` takes for a video, without server and browser.

python benchmarks/app.py RUN VIDEOS [--classes READOUT] [--depth READOUT] [--num_videos 10]

VIDEOS is a folder of mp4 files. Of each, everything that the page shows is made, by a model that predicts pixels if
the run has kept one. Time is that of the processor, the process that decodes included, so that other programs disturb
it less; loading the models is left out.
"""

import argparse
import gc
import resource
from pathlib import Path

from layerlock_hf.app import Subject, find_kept
from layerlock_hf.app.page import Looking
from layerlock_hf.app.reading import MAX_MB, MAX_SECONDS


def seconds() -> float:
    """Of the processor, of this process and of those that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--classes", type=Path)
    parser.add_argument("--depth", type=Path)
    parser.add_argument("--num_videos", type=int, default=10)
    args = parser.parse_args()
    subject = Subject(find_kept(args.run), args.classes, args.depth)
    able = [place for place, one in enumerate(subject.kept) if one.objective is not None]
    place = able[-1] if able else len(subject.kept) - 1
    num_layers = subject.num_layers
    subject.model(place)
    looking = Looking(subject, MAX_MB, MAX_SECONDS)
    paths = sorted(args.videos.glob("*.mp4"))[: args.num_videos]
    begin = seconds()
    for path in paths:
        line, visit = looking.read(str(path))
        assert visit is not None, line
        looking.classes(visit)
        looking.film(visit)
        looking.pictures(visit, place, num_layers)
    del looking  # which ends the process that decodes: before, its time is not told
    gc.collect()
    print(f"{(seconds() - begin) / len(paths):.3f} s of the processor per video, mean of {len(paths)}")


if __name__ == "__main__":
    main()
