"""The sum over a region, with limits."""

import numpy as np

from tango_stddaq.stages.own_stage import Image, Setting, Value, ValueStage


class RoiSum(ValueStage):
    """Sum and mean of a rectangle of every image; outside of the limits the sum is in ALARM."""

    name = "roi-sum"
    x = Setting(0, "First column.", unit="pixels", minimum=0)
    y = Setting(0, "First row.", unit="pixels", minimum=0)
    width = Setting(100, "Columns; cut where the image ends.", unit="pixels", minimum=1)
    height = Setting(100, "Rows; cut where the image ends.", unit="pixels", minimum=1)
    low_limit = Setting(0.0, "Below it the sum is in ALARM.", unit="counts")
    high_limit = Setting(1e18, "Above it the sum is in ALARM.", unit="counts")
    roi_sum = Value("counts", "Sum of the region.", low="low_limit", high="high_limit")
    roi_mean = Value("counts", "Mean of the region.")

    def process(self, pixels: np.ndarray, image: Image) -> None:
        """Look at an image."""
        region = pixels[self.y : self.y + self.height, self.x : self.x + self.width]
        self.roi_sum = region.sum(dtype=np.float64)
        self.roi_mean = self.roi_sum / max(1, region.size)
