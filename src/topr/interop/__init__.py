"""Other tools' rows: their files, columns and shapes read into rollouts, and rollouts written out.

topr's own format is in `topr.store`; reference answers and grades are read here as well, since
anybody's rows can hold them.
"""

from topr.interop.column_map import ColumnMap
from topr.interop.exporters import EXPORTS, Export, Exported, export_rollouts
from topr.interop.formats import FORMATS, Format
from topr.interop.import_options import Reading
from topr.interop.import_stage import Incoming, incoming, write_rollouts
from topr.interop.import_stage import report as report_import
from topr.interop.importers import import_rollouts
from topr.interop.row_files import as_column, check_output, read_rows, write_rows
from topr.interop.row_reader import Rows, data_files

__all__ = [
    "EXPORTS",
    "FORMATS",
    "ColumnMap",
    "Export",
    "Exported",
    "Format",
    "Incoming",
    "Reading",
    "Rows",
    "as_column",
    "check_output",
    "data_files",
    "export_rollouts",
    "import_rollouts",
    "incoming",
    "read_rows",
    "report_import",
    "write_rollouts",
    "write_rows",
]
