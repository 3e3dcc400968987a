"""Takes the pictures of the report in docs/reading_your_run.md: the demo's, in a headless Chromium.

    make demo
    python docs/draw_report.py        # writes docs/figures/report_{results,attention}.jpg

Needs selenium (requirements-dev.txt) and Chromium (Debian and Ubuntu: apt install chromium chromium-driver).
"""

import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).parent / "figures"
WORKDIR = "demo_output/run"
WIDTH = 1200  # pixels of the window
# Picture -> the section whose head it starts with, the height in pixels.
FIGURES_BY_NAME = {"report_results.jpg": ("summary", 1045), "report_attention.jpg": ("attention", 575)}


def shoot(page: Path, folder: Path) -> None:
    """Writes the pictures of a report into a folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        for name, (section, height) in FIGURES_BY_NAME.items():
            top = driver.execute_script(f"return document.getElementById('{section}').getBoundingClientRect().top")
            clip = {"x": 0, "y": top - 12, "width": WIDTH, "height": height, "scale": 1}
            shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            picture = cv2.imdecode(np.frombuffer(base64.b64decode(shot["data"]), np.uint8), cv2.IMREAD_COLOR)
            cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 82])
            print(folder / name)
    finally:
        driver.quit()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "mv2mae_jax.report", f"--workdir={WORKDIR}", f"--output={page}"]
        subprocess.run(command, cwd=ROOT, check=True)
        shoot(page, FIGURES)


if __name__ == "__main__":
    main()
