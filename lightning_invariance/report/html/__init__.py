"""Results as one HTML file: tables, figures, texts and lists of findings, in sections."""

from lightning_invariance.report.html._blocks import Block as Block
from lightning_invariance.report.html._blocks import Figure as Figure
from lightning_invariance.report.html._blocks import Items as Items
from lightning_invariance.report.html._blocks import Section as Section
from lightning_invariance.report.html._blocks import Table as Table
from lightning_invariance.report.html._blocks import Text as Text
from lightning_invariance.report.html._blocks import figure_of as figure_of
from lightning_invariance.report.html._page import page as page
from lightning_invariance.report.html._table import table_html as table_html
