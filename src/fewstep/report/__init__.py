"""Grids of images, charts, and a self-contained HTML page from the records of runs; nothing here needs torch."""

from fewstep.data.grid import grid as grid
from fewstep.data.grid import save_png as save_png
from fewstep.report.axes import Series as Series
from fewstep.report.page import write_report as write_report
from fewstep.report.plot import Reference as Reference
from fewstep.report.plot import line_chart as line_chart
