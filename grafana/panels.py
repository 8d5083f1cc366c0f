"""How a query, a panel, a variable and a dashboard of ours look, with grafana-foundation-sdk."""

import re
from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    HeatmapCellLayout,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.queries import PREFIX, SERVER

DATASOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT: Final = 8
TILE_HEIGHT: Final = 4

Query = tuple[str, str]
"""Expression and legend."""


def _targets(queries: Sequence[Query], form: PromQueryFormat) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).format(form).ref_id(chr(65 + place))
        for place, (expr, legend) in enumerate(queries)
    ]


def _described(panel: Any, title: str, text: str, unit: str, queries: Sequence[Query]) -> Any:
    """Title, unit, queries, and a description that names every metric in them."""
    form = PromQueryFormat.HEATMAP if unit == "heatmap" else PromQueryFormat.TIME_SERIES
    names = sorted({name for expr, _ in queries for name in re.findall(rf"{PREFIX}\w+", expr)})
    panel.title(title).description(f"{text}\n\nMetrics: {', '.join(names)}")
    panel.datasource(DATASOURCE).targets(_targets(queries, form))
    return panel if unit == "heatmap" else panel.unit(unit)


def tile(
    title: str,
    text: str,
    unit: str,
    expr: str,
    *,
    bad_above: float | None = None,
    names: Sequence[str] = (),
    decimals: int | None = None,
) -> stat.Panel:
    """One number; ``names`` are shown instead of 0, 1, …"""
    panel = _described(stat.Panel(), title, text, unit, [(expr, "")])
    steps = [Threshold(color="text" if bad_above is None else "green")]
    if bad_above is not None:
        steps.append(Threshold(bad_above, "red"))
    limits = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    results = {str(number): ValueMappingResult(text=name) for number, name in enumerate(names)}
    panel.thresholds(limits).mappings([ValueMap(options=results)] if names else [])
    panel.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.NONE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.no_value("No traffic").span(4).height(TILE_HEIGHT)
    return panel if decimals is None else panel.decimals(decimals)


def curves(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    span: int = 12,
    stacked: bool = False,
    signed: bool = False,
) -> timeseries.Panel:
    """Values over time; from 0 on, unless they can be negative."""
    panel = _described(timeseries.Panel(), title, text, unit, queries)
    panel.span(span).height(HEIGHT).fill_opacity(40 if stacked else 5).line_width(1)
    if not signed:
        panel.min(0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return panel


def heat_map(title: str, text: str, unit: str, expr: str) -> heatmap.Panel:
    """How many there were in each bucket of a histogram."""
    panel = _described(heatmap.Panel(), title, text, "heatmap", [(expr, "{{le}}")])
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
    panel.color(colours.scale(HeatmapColorScale.EXPONENTIAL).exponent(0.5).steps(64))
    panel.rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.LE))
    panel.y_axis(heatmap.YAxisConfig().unit(unit)).show_legend().show_tooltip().cell_gap(1)
    return panel.span(12).height(HEIGHT)


def _variable(name: str, label: str, filters: str, *, several: bool = True) -> Any:
    """A label's values; all of them at first, where several may be chosen."""
    query = f"label_values({PREFIX}energy_joules_total{{{filters}}},{name})"
    variable = dashboard.QueryVariable(name).label(label).query(query).datasource(DATASOURCE)
    variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    if not several:
        return variable
    everything = VariableOption(text="All", value="$__all")
    return variable.multi(True).include_all(True).all_value(".*").current(everything)


def board(uid: str, title: str, text: str, panels: Sequence[Any]) -> dashboard.Dashboard:
    """A dashboard; the others of ours and vLLM's own are linked by their tags."""
    built = dashboard.Dashboard(title).uid(uid).description(text)
    built.tags(["llm_carbon_meter", "vllm"]).tooltip(DashboardCursorSync.CROSSHAIR)
    built.time("now-1h", "now").refresh("30s").editable().timezone("browser")
    link = dashboard.DashboardLink("vLLM").type(DashboardLinkType.DASHBOARDS)
    built.link(link.tags(["vllm"]).as_dropdown(True).include_vars(True).keep_time(True))
    built.with_variable(
        dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    )
    built.with_variable(_variable("job", "Job", ""))
    built.with_variable(_variable("model_name", "Model", 'job=~"$job"'))
    built.with_variable(_variable("engine", "Engine", SERVER))
    built.with_variable(_variable("source", "Source", SERVER, several=False))
    for number, panel in enumerate(panels, 1):
        built.with_panel(panel.id(number))
    return built
