-- calendar: one row per day, from 2010 to 2039. Read by: charts over time; a left join from here
-- also shows days without runs. Weeks are ISO 8601 weeks.
CREATE VIEW {reporting}calendar AS
SELECT dates.day, dates.iso_date, dates.year, dates.quarter, dates.month, dates.month_starts_on,
       dates.day_of_month, dates.iso_year, dates.iso_week, dates.week_starts_on,
       dates.iso_weekday, dates.is_weekend
  FROM dates
