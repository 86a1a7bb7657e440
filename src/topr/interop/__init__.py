"""Other tools' rows: their files, columns and shapes read into rollouts, and rollouts written out.

topr's own format is in `topr.store`; reference answers and grades are read here as well, since
anybody's rows can hold them.
"""

from topr.interop.column_map import ColumnMap
from topr.interop.exporters import EXPORTS, export_rollouts
from topr.interop.formats import FORMATS, ImportSource, open_source
from topr.interop.import_options import ImportOptions
from topr.interop.import_stage import report as report_import
from topr.interop.import_stage import write_rollouts
from topr.interop.importers import import_rollouts
from topr.interop.row_files import RowStream, as_column, data_files, read_rows, table_of
from topr.interop.row_output import check_output, write_rows

__all__ = [
    "EXPORTS",
    "FORMATS",
    "ColumnMap",
    "ImportOptions",
    "ImportSource",
    "RowStream",
    "as_column",
    "check_output",
    "data_files",
    "export_rollouts",
    "import_rollouts",
    "open_source",
    "read_rows",
    "report_import",
    "table_of",
    "write_rollouts",
    "write_rows",
]
