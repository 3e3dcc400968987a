"""Northwestern-UCLA Multiview Action 3D (Wang et al., CVPR 2014): `a01/v01_s01_e00.avi`, `view_1/a01_s01_e00/*.jpg`.

a is the action, v the view, s the subject, e the performance. The views of a performance are not aligned frame by frame
(of 433 performances with three skeleton files, 3 have equal lengths; the median difference is 18 frames), so this is
transfer data: every view is a clip of its own.
"""

import re
from typing import ClassVar

from console.errors import UserError
from data.catalog.base import CONTAINER, Catalog, Count, Video, by, check_range, random_takes, train_and_test

# Code in the file names -> class. The codes are those of three public loaders; which name belongs to which code is
# inferred from the order of the names there.
CLASS_OF_CODE = {
    1: "pick up with one hand",
    2: "pick up with two hands",
    3: "drop trash",
    4: "walk around",
    5: "sit down",
    6: "stand up",
    8: "donning",
    9: "doffing",
    11: "throw",
    12: "carry",
}
CODES = tuple(CLASS_OF_CODE)
NUM_VIEWS = 3
NUM_SUBJECTS = 10

_NAME = re.compile(rf"(?:.*/)?a(\d{{2}})/v(\d{{2}})_s(\d{{2}})_e(\d{{2}}){CONTAINER}", re.ASCII | re.IGNORECASE)
# Of the release as frames, a folder of images for each video.
_OF_FRAMES = re.compile(
    rf"(?:.*/)?view_(\d{{1,2}})/a(\d{{2}})_s(\d{{2}})_e(\d{{2}}){CONTAINER}", re.ASCII | re.IGNORECASE
)


class NUCLA(Catalog):
    """NUCLA: about 1,480 videos of 10 classes, 10 subjects, 3 views."""

    name = "nucla"
    class_names = tuple(CLASS_OF_CODE.values())
    not_synchronised = (
        "the views of NUCLA are not aligned frame by frame: the lengths of the views of one performance differ by a "
        "median of 18 frames"
    )
    protocols: ClassVar = {
        "xview": by("camera", lambda view: view == 3),  # the usual one
        "xview_132": by("camera", lambda view: view == 2),  # the first two digits are the training views
        "xview_231": by("camera", lambda view: view == 1),
        "xsub": by("subject", lambda subject: subject == 10),  # as in DVANet's lists
        "random": random_takes,
    }
    # DVANet's master list of the videos. Other lists count 1,482 videos (VPN) or 1,484 skeletons (CTR-GCN), and papers
    # say 1,494: a copy may differ by some videos.
    published = (
        Count(protocol="all", split="all", videos=1_475),
        Count(protocol="all", split="all", camera=1, videos=514),
        Count(protocol="all", split="all", camera=2, videos=501),
        Count(protocol="all", split="all", camera=3, videos=460),
        *train_and_test("xview", train=1_015, test=460),
    )
    remarks = (
        "counted in one public list (DVANet's); others count 1,482 or 1,484 and papers say 1,494, so a copy that "
        "differs by a few videos is not necessarily incomplete",
        "548 performances in that list, 418 of them with all three views",
    )

    def parse(self, path: str) -> Video:
        """See `Catalog.parse`. The folder of the action belongs to the name; what lies above it does not."""
        if matched := _NAME.fullmatch(path):
            code, view, subject, performance = map(int, matched.groups())
        elif matched := _OF_FRAMES.fullmatch(path):
            view, code, subject, performance = map(int, matched.groups())
        else:
            raise UserError(
                f"{path!r} is not of the form aAA/vVV_sSS_eEE.avi, as a01/v01_s01_e00.avi is, nor a folder of frames, "
                "as view_1/a01_s01_e00 is"
            )
        if code not in CLASS_OF_CODE:
            raise UserError(f"{path!r}: actions are {', '.join(map(str, CODES))}, not {code}")
        check_range(path, "views", view, NUM_VIEWS)
        check_range(path, "subjects", subject, NUM_SUBJECTS)
        return Video(
            path=path,
            take=f"a{code:02}_s{subject:02}_e{performance:02}",
            view=f"v{view:02}",
            label=CODES.index(code),
            subject=subject,
            camera=view,
            performance=performance,
        )

    def format(self, video: Video) -> str:
        name = f"v{video.camera:02}_s{video.subject:02}_e{video.performance:02}.avi"
        return f"a{CODES[video.label]:02}/{name}"
