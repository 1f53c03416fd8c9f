// Draws props.value (a Plotly figure as JSON) with Plotly.react, so that zoom and hover survive
// updates. A click on a point with custom data triggers 'pick' with that data and the point's x.
const box = element.querySelector(".wb-plot");
const config = {
  displaylogo: false,
  responsive: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};
let bound = false;
let drawn = null;

function draw() {
  if (!props.value || box.offsetWidth === 0) return; // the resize observer draws once it is seen
  drawn = props.value;
  box.querySelector(":scope > .wb-quiet")?.remove(); // what was said while nothing was drawn
  const figure = JSON.parse(drawn);
  const style = getComputedStyle(element);
  const quiet = style.getPropertyValue("--body-text-color-subdued");
  const strong = style.getPropertyValue("--body-text-color");
  const layout = figure.layout;
  layout.font = { ...layout.font, color: quiet };
  layout.title = { ...layout.title, font: { ...(layout.title || {}).font, color: strong } };
  layout.width = box.offsetWidth;
  layout.height = box.offsetHeight;
  Plotly.react(box, figure.data, layout, config);
  if (bound) return;
  bound = true;
  box.on("plotly_click", (event) => {
    const picked = event.points.find((point) => point.customdata);
    if (picked) trigger("pick", { value: String(picked.customdata), x: picked.x });
  });
}

new ResizeObserver(() => {
  if (box.offsetWidth === 0) return;
  if (drawn !== props.value) draw();
  else Plotly.relayout(box, { width: box.offsetWidth, height: box.offsetHeight });
}).observe(box);
new MutationObserver(() => draw()).observe(document.body, { attributeFilter: ["class"] });
watch("value", draw);
draw();
