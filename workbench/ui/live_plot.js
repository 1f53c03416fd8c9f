// Draws props.value (a Plotly figure as JSON) with Plotly.react, so that zoom and hover survive
// updates. A click on a point with custom data triggers 'pick' with that data and the point's x.
const box = element.querySelector(".wb-plot");
const config = {
  displaylogo: false,
  responsive: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};
let bound = false;
let width = 0;
let room = 0; // what the legend above the curves needs at this width, the title included
let drawn = null;

function draw() {
  if (!props.value || box.offsetWidth === 0) return; // the resize observer draws once it is seen
  drawn = props.value;
  if (box.offsetWidth !== width) room = 0;
  width = box.offsetWidth;
  box.querySelector(":scope > .wb-quiet")?.remove(); // what was said while nothing was drawn
  const figure = JSON.parse(drawn);
  const style = getComputedStyle(element);
  const quiet = style.getPropertyValue("--body-text-color-subdued");
  const strong = style.getPropertyValue("--body-text-color");
  const layout = figure.layout;
  layout.font = { ...layout.font, color: quiet };
  layout.title = { ...layout.title, font: { ...(layout.title || {}).font, color: strong } };
  layout.width = width;
  layout.height = box.offsetHeight;
  layout.margin = { ...layout.margin, t: Math.max((layout.margin || {}).t ?? 56, room) };
  Plotly.react(box, figure.data, layout, config);
  makeRoom();
  if (bound) return;
  bound = true;
  box.on("plotly_click", (event) => {
    const picked = event.points.find((point) => point.customdata);
    if (picked) trigger("pick", { value: String(picked.customdata), x: picked.x });
  });
}

function makeRoom() {
  const legend = box.querySelector("g.legend");
  if (!legend || box._fullLayout.legend.yanchor !== "bottom") return;
  const needed = Math.ceil(legend.getBoundingClientRect().height) + 30;
  if (needed <= box._fullLayout.margin.t) return;
  room = needed;
  Plotly.relayout(box, { "margin.t": room });
}

new ResizeObserver(() => {
  if (drawn !== props.value || box.offsetWidth !== width) draw();
}).observe(box);
new MutationObserver(() => draw()).observe(document.body, { attributeFilter: ["class"] });
watch("value", draw);
draw();
