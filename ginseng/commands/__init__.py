"""The commands."""

from ginseng.commands.annotating import annotate as annotate
from ginseng.commands.annotating import merge as merge
from ginseng.commands.checking import doctor as doctor
from ginseng.commands.harmonizing import harmonize as harmonize
from ginseng.commands.registry import app as app
from ginseng.commands.reporting import explain as explain
from ginseng.commands.reporting import report as report
from ginseng.commands.training import create as create
from ginseng.commands.training import demo as demo
from ginseng.commands.training import fit as fit
from ginseng.commands.training import inspect as inspect
from ginseng.commands.tuning import finetune as finetune
