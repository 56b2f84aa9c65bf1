// The longest of 1, 2 and 5 times a power of ten that is at most that length.
function scaleBarLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((it) => it * power).find((it) => it <= most * (1 + 1e-9)) ?? most;
}
