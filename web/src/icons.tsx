// The page's icons, drawn in strokes.

const icon = (d: string) => () => (
  <svg
    viewBox="0 0 24 24"
    width="18"
    height="18"
    fill="none"
    stroke="currentColor"
    stroke-width="1.8"
    stroke-linecap="round"
    stroke-linejoin="round"
    aria-hidden="true"
  >
    <path d={d} />
  </svg>
);

export const IconMenu = icon("M4 7h16M4 12h16M4 17h16");
export const IconPlus = icon("M12 5v14M5 12h14");
export const IconSearch = icon("M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM16 16l4.5 4.5");
export const IconSend = icon("M12 19V5M6 11l6-6 6 6");
export const IconStop = icon("M7 7h10v10H7z");
export const IconClip = icon(
  "M20 11.5l-8.2 8.2a5 5 0 0 1-7.1-7.1l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7l-8.4 8.4a1.7 1.7 0 0 1-2.4-2.4l7.7-7.6",
);
export const IconCopy = icon(
  "M9 9h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H9a1 1 0 0 1-1-1V10a1 1 0 0 1 1-1zM5 15H4a1 1 0 0 1-1-1V4a1 1 0 0 1 1-1h10a1 1 0 0 1 1 1v1",
);
export const IconCheck = icon("M5 12.5l4.5 4.5L19 7.5");
export const IconEdit = icon(
  "M4 20l.9-4.2L16.2 4.5a2.1 2.1 0 0 1 3 0l.3.3a2.1 2.1 0 0 1 0 3L8.2 19.1 4 20zM14.5 6.2l3.3 3.3",
);
export const IconAgain = icon(
  "M4 12a8 8 0 0 1 13.8-5.5L20 8.7M20 4v4.7h-4.7M20 12a8 8 0 0 1-13.8 5.5L4 15.3M4 20v-4.7h4.7",
);
export const IconTrash = icon("M4 7h16M9.5 7V4.5h5V7M6.5 7l.8 12.5h9.4L17.5 7M10 11v5M14 11v5");
export const IconLeft = icon("M14.5 6l-6 6 6 6");
export const IconRight = icon("M9.5 6l6 6-6 6");
export const IconDown = icon("M6 9.5l6 6 6-6");
export const IconEnd = icon("M6 5.5l6 6 6-6M6 12.5l6 6 6-6");
export const IconClose = icon("M6 6l12 12M18 6L6 18");
export const IconTokens = icon("M4 19V9M9.3 19V5M14.7 19v-7M20 19v-4");
export const IconMore = icon("M5 12h.01M12 12h.01M19 12h.01");
export const IconFork = icon(
  "M6 3.5a2 2 0 1 1 0 4 2 2 0 0 1 0-4zM18 3.5a2 2 0 1 1 0 4 2 2 0 0 1 0-4zM6 16.5a2 2 0 1 1 0 4 2 2 0 0 1 0-4zM6 7.5v9M18 7.5v1a4 4 0 0 1-4 4H6",
);
export const IconThought = icon(
  "M9.5 17h5M10 20.5h4M12 3.5a6 6 0 0 0-3.7 10.7c.8.7 1.2 1.7 1.2 2.8h5c0-1.1.4-2.1 1.2-2.8A6 6 0 0 0 12 3.5z",
);
export const IconOn = icon("M5 5v14M10 6l9 6-9 6z");
export const IconSettings = icon("M4 7h9M17 7h3M15 5v4M4 17h3M11 17h9M9 15v4");
export const IconFile = icon(
  "M13.5 3H7a1 1 0 0 0-1 1v16a1 1 0 0 0 1 1h10a1 1 0 0 0 1-1V7.5zM13.5 3v4.5H18M9 12.5h6M9 16h6",
);
